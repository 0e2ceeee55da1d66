"""What no good picture is: found in every form in which pipelines return pictures, and only there."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput
from PIL import Image

from stack.measure.decoded import picture_faults

GOOD = np.random.default_rng(0).random((24, 32, 3)).astype(np.float32) * 0.9 + 0.05
STRIPES = np.tile(np.float32([0, 1]), (24, 16))[..., None].repeat(3, 2)
CASES: dict[str, tuple[np.ndarray, str]] = {
    "good": (GOOD, ""),
    "black": (np.zeros_like(GOOD), "is black"),
    "red": (np.zeros_like(GOOD) + np.float32([0.8, 0.1, 0.1]), "is one single colour"),
    "stripes": (STRIPES, "is saturated: its values are 0 or full only"),
    "stripes with a grey corner": (np.where(np.arange(24)[:, None, None] < 2, np.float32(0.5), STRIPES), ""),
    "a hole": (np.where(np.arange(24)[:, None, None] == 3, np.float32("nan"), GOOD), "holds NaN or infinity"),
    "a latent": (GOOD * 6 - 3, ""),
    "a constant latent": (np.zeros_like(GOOD) - 3, ""),
}


def image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray((picture * 255).round().astype(np.uint8))


def forms(picture: np.ndarray) -> dict[str, Any]:
    """A good picture and this one, as pipelines return them."""
    both = np.stack([GOOD, picture])
    found = {
        "arrays": both,
        "tensors": torch.from_numpy(both).permute(0, 3, 1, 2),
        "bfloat16": torch.from_numpy(both).permute(0, 3, 1, 2).bfloat16(),
        "videos as tensors": torch.from_numpy(both).permute(0, 3, 1, 2)[:, None].repeat(1, 7, 1, 1, 1),
        "videos as arrays": both[:, None].repeat(7, 1),
    }
    if np.isfinite(picture).all() and picture.min() >= 0 and picture.max() <= 1:
        found |= {"images": [image(one) for one in both], "videos": [[image(one)] * 7 for one in both]}
    return found


@pytest.mark.parametrize(("picture", "expected"), CASES.values(), ids=CASES.keys())
def test_faults_in_every_form(picture: np.ndarray, expected: str) -> None:
    wanted = [f"picture 1 {expected}"] if expected else []
    for name, made in forms(picture).items():
        assert picture_faults((made,)) == wanted, name
        assert picture_faults(FluxPipelineOutput(images=made)) == wanted, name


def test_a_video_may_begin_and_end_in_black() -> None:
    video = torch.from_numpy(GOOD).permute(2, 0, 1).repeat(9, 1, 1, 1)
    video[0] = video[-1] = 0
    assert picture_faults((video[None],)) == []
    assert picture_faults((0 * video[None],)) == ["picture 0 is black"]
    video[4] = float("inf")
    assert picture_faults((video[None],)) == ["picture 0 holds NaN or infinity"]


@pytest.mark.parametrize(
    "result",
    [(), None, "text", (None,), ({"mesh": 1},), ([],), (torch.zeros(2, 5),), ([[1, 2]],)],
    ids=repr,
)
def test_what_holds_no_pictures_is_passed_over(result: Any) -> None:
    assert picture_faults(result) == []


def test_a_large_image_is_looked_at_in_milliseconds() -> None:
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8))
    picture_faults(([large],))
    started = perf_counter()
    assert picture_faults(([large],)) == []
    assert perf_counter() - started < 0.2  # about 0.01 s on an idle core
