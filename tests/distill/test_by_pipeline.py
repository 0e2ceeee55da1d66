"""Cards that name a pipeline's class, as passes of a whole stack on pipelines of other families."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stack import Stack, StackError
from stack.distill.find import find_card, shipped_folder

from ..lora import save_lora
from .pipes import Tiny, ltx, qwen, sd3, wan

ATTENTION = ("attn.to_q", "attn.to_v", "attn1.to_q", "attn2.to_v")
CARDS: dict[str, tuple[Callable[[], Tiny], list[str]]] = {
    "hyper-sd3-4": (sd3, ["transformer"]),
    "qwen-image-lightning-8": (qwen, ["transformer"]),
    "wan22-t2v-lightx2v-4": (wan, ["transformer", "transformer_2"]),
}


def card_beside_weights(adapter: str, folder: Path, tiny: Tiny, parts: list[str], other: Any = None) -> str:
    """A copy of a shipped card with random LoRAs beside it, for the tiny pipeline's own sizes or another model's."""
    weights = find_card(adapter).weights
    assert weights is not None
    for seed, part in enumerate(parts):
        name = weights.files[part].removesuffix(".safetensors")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        model = other if other is not None else tiny.pipe.components[part]
        save_lora(model, folder, name=name, seed=seed, targets=ATTENTION)
    text = (shipped_folder() / f"{adapter}.toml").read_text()
    # The sizes of the real model, which the tiny one does not have.
    (folder / "mine.toml").write_text(re.sub(r"\[config\]\n[^\[]*", "", text))
    return str(folder / "mine.toml")


def states(tiny: Tiny, parts: list[str]) -> dict[str, torch.Tensor]:
    # Not their state dicts: with an adapter on, those hold the model's own weights.
    return {f"{p}.{k}": v.detach().clone() for p in parts for k, v in tiny.pipe.components[p].named_parameters()}


@pytest.mark.parametrize("adapter", CARDS)
def test_a_card_of_the_pipelines_class_is_fused_run_and_taken_off(adapter: str, tmp_path: Path) -> None:
    make, parts = CARDS[adapter]
    tiny = make()
    card, before = card_beside_weights(adapter, tmp_path, tiny, parts), states(tiny, parts)
    stack = Stack(tiny.pipe, steps=find_card(adapter).steps).distill(card)
    stack.apply()
    during = states(tiny, parts)
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], during[name])} == set(parts)
    out = stack(**tiny.given, generator=torch.Generator().manual_seed(0), output_type="latent", return_dict=False)[0]
    assert bool(out.isfinite().all()) and len(stack.report().steps) > 0
    stack.undo()
    after = states(tiny, parts)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("adapter", ["hyper-sd3-4", "qwen-image-lightning-8"])
def test_weights_of_another_size_are_refused_before_anything_is_changed(adapter: str, tmp_path: Path) -> None:
    make, parts = CARDS[adapter]
    tiny = make()
    wide = torch.nn.Module()
    wide.transformer_blocks = torch.nn.ModuleList([torch.nn.Module()])
    wide.transformer_blocks[0].attn = torch.nn.Module()
    wide.transformer_blocks[0].attn.to_q = torch.nn.Linear(64, 64)
    card, before = card_beside_weights(adapter, tmp_path, tiny, parts, other=wide), states(tiny, parts)
    with pytest.raises(StackError, match="does not fit this model"):
        Stack(tiny.pipe, steps=find_card(adapter).steps).distill(card).apply()
    after = states(tiny, parts)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_card_of_another_class_size_or_pipeline_is_refused() -> None:
    tiny = sd3()
    with pytest.raises(
        StackError, match="made for QwenImageTransformer2DModel: this denoiser is SD3Transformer2DModel"
    ):
        Stack(tiny.pipe, steps=8).distill("qwen-image-lightning-8").apply()
    with pytest.raises(StackError, match="is made for a model with num_layers 24: this one has 1"):
        Stack(tiny.pipe.transformer, steps=4).distill("hyper-sd3-4").apply()
    with pytest.raises(StackError, match=r"made for QwenImageEditPipeline or .*: this pipeline is QwenImagePipeline"):
        Stack(qwen().pipe, steps=8).distill("qwen-image-edit-lightning-8").apply()


@pytest.mark.parametrize("make", [sd3, qwen, ltx, wan])
def test_a_cache_on_their_whole_pipelines_skips_steps_and_comes_off(make: Callable[[], Tiny]) -> None:
    """Wan's pipeline also says in which step its named guidance branches are."""
    tiny, steps = make(), {"num_inference_steps": 8}
    plain = tiny.run(steps)[0]
    with Stack(tiny.pipe, steps=8).cache("reuse", interval=1):
        assert torch.equal(tiny.run(steps)[0], plain), "every step in full"
    with Stack(tiny.pipe, steps=8).cache("reuse", count=5) as stack:
        during = tiny.run(steps)[0]
        kinds = [record.kind for record in stack.report().steps]
    assert kinds.count("full") < len(kinds) and bool(during.isfinite().all())
    assert torch.equal(tiny.run(steps)[0], plain)
