"""What a stack says of a finished call whose steps all looked right."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stack import Stack
from stack.runtime.report import StepRecord, unchanging_words

from .conftest import tiny_pipe

PROMPT = "a red ring"


def record(kind: str, error: float | None) -> StepRecord:
    return StepRecord(0, 1.0, "main", kind, error, 0.1, 0.1)


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([("full", None), ("cached", None), ("full", 0.0), ("cached", None), ("full", 0.0)], True),
        ([("full", None), ("cached", None), ("full", 0.0), ("cached", None), ("full", 1e-9)], False),
        ([("full", None), ("cached", None), ("full", 0.0)], False),  # one may be chance
        ([("full", 0.0), ("full", 0.0)], False),
        ([], False),
    ],
)
def test_forecasts_that_are_all_exact_are_told(steps: list[tuple[str, float | None]], told: bool) -> None:
    text = unchanging_words([record(*step) for step in steps])
    assert text.startswith("all 2 measured forecasts were exact") if told else text == ""


def test_a_cache_of_what_never_changes_is_told() -> None:
    """A model that reads neither its latent nor its time: whatever is cached is what would be computed."""
    pipe = tiny_pipe()
    for name, parameter in pipe.transformer.named_parameters():
        if any(part in name for part in ("norm1.linear", "norm.linear", "x_embedder.weight")):
            parameter.data.zero_()  # the latent, and every gate of every block
    fast = Stack(pipe, steps=8).cache("svd", count=4)
    fast(PROMPT, num_inference_steps=8)
    assert [text for text in fast.report().warnings if "measured forecasts were exact" in text] != []


@pytest.mark.parametrize("kind", ["pil", "pt", "np"])
def test_a_picture_that_the_decoder_ruins_is_told(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_pipe()
    fast = Stack(pipe, steps=4).cache("svd", count=3)
    fast(PROMPT, num_inference_steps=4, output_type=kind)
    assert [text for text in fast.report().warnings if text.startswith("picture")] == []
    whole = type(pipe).__call__

    def ruined(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = whole(self, *args, **{**kwargs, "output_type": "pt"})
        made.images = made.images * torch.nan if kind == "pt" else [self_image(made.images[0] * 0)]
        return made

    monkeypatch.setattr(type(pipe), "__call__", ruined)
    fast(PROMPT, num_inference_steps=4, output_type=kind)
    expected = "picture 0 holds NaN or infinity" if kind == "pt" else "picture 0 is black"
    assert fast.report().warnings[-1] == expected
    assert f"warning: {expected}" in str(fast.report())


def self_image(picture: torch.Tensor) -> Any:
    from PIL import Image

    return Image.fromarray((picture.permute(1, 2, 0) * 255).byte().numpy())
