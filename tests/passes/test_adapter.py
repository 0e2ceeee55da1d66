"""Adapters beside the weights: on quantized models, exchanged at run time, under a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stack import Stack, StackError
from stack.distill.adapter import Adapter
from stack.distill.distill import Distill
from stack.distill.side import SideLinear
from stack.quant.linears.int8 import Int8Linear

from ..conftest import picture, tiny_denoiser, tiny_pipe
from ..lora import save_lora

STEPS = 14


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Two LoRAs for the tiny pipeline, the second of another rank and for other linears too."""
    denoiser = tiny_denoiser()
    save_lora(denoiser, tmp_path, name="one", seed=1)
    save_lora(denoiser, tmp_path, name="two", seed=2, rank=8, targets=("attn.to_k", "attn.to_q", "proj_mlp"), alpha=4.0)
    return str(tmp_path / "one.safetensors"), str(tmp_path / "two.safetensors")


def packed(pipe: Any) -> dict[str, object]:
    """The steps of every packed int8 linear, by path without the branches around it."""
    return {
        name.replace(".base", ""): module.step
        for name, module in pipe.transformer.named_modules()
        if isinstance(module, Int8Linear)
    }


def test_beside_and_fused_are_the_same_picture(files: tuple[str, str]) -> None:
    pipe = tiny_pipe()
    before = {name: t.clone() for name, t in pipe.transformer.state_dict().items()}
    with Stack(pipe).distill(files[0]):
        fused = picture(pipe)
    stack = Stack(pipe).distill(files[0], switchable=True).apply()
    torch.testing.assert_close(picture(stack), fused, rtol=0, atol=2e-4)
    assert "5 linears with one beside them" in str(stack.report())
    stack.undo()
    assert list(pipe.transformer.state_dict()) == list(before)
    assert all(torch.equal(t, before[name]) for name, t in pipe.transformer.state_dict().items())


def test_the_branch_stands_above_the_quantized_weights(files: tuple[str, str]) -> None:
    pipe = tiny_pipe()
    with Stack(pipe).quantize("int8", min_features=64):
        alone = packed(pipe)
        quantized = picture(pipe)
    with Stack(pipe).distill(files[0], switchable=True).quantize("int8", min_features=64) as stack:
        assert [p.stage for p in stack.plan.passes()] == ["quantize", "adapter"]
        assert packed(pipe).keys() == alone.keys(), "as many linears are converted as without it"
        both = picture(pipe)
    with Stack(pipe).distill(files[0]):
        wanted = picture(pipe)
    with Stack(pipe).distill(files[0], switchable=True, scale=0.0).quantize("int8", min_features=64):
        assert torch.equal(picture(pipe), quantized), "at scale 0 it is the quantized base, bit for bit"
    assert (both - wanted).norm() < 0.2 * (quantized - wanted).norm()


def test_a_swap_quantizes_nothing_again_and_forgets_the_cache(files: tuple[str, str]) -> None:
    pipe = tiny_pipe()
    build = Stack(pipe, steps=STEPS).quantize("int8", min_features=64).cache("svd", interval=4, warmup=2)
    stack = build.distill(files[0], switchable=True).apply()
    weights, first = packed(pipe), picture(stack, STEPS)
    version, adapters = stack._layers.version, stack.plan.facts_after.adapters
    stack.swap_adapter(files[1])
    assert stack._layers.version > version and stack.plan.facts_after.adapters != adapters
    assert stack.report().cache_bytes == 0, "no state of the old adapter is left"
    now = packed(pipe)
    assert weights and now.keys() == weights.keys() and all(now[name] is weights[name] for name in weights)
    second = picture(stack, STEPS)
    assert not torch.equal(second, first)
    assert stack.report().passes["cache"]["dropped"] == 0
    stack.swap_adapter(files[0])
    assert torch.equal(picture(stack, STEPS), first)
    stack.undo()
    fresh = Stack(pipe, steps=STEPS).quantize("int8", min_features=64).cache("svd", interval=4, warmup=2)
    with fresh.distill(files[1], switchable=True):
        assert torch.equal(picture(fresh, STEPS), second)


def test_a_cached_feature_never_outlives_its_adapter(files: tuple[str, str]) -> None:
    """A swap in the middle of a request, from a callback: the next step may not use what was made before."""
    pipe = tiny_pipe()
    stack = Stack(pipe, steps=STEPS).cache("svd", interval=4, warmup=2).distill(files[0], switchable=True).apply()

    def swap(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 6:  # steps 7 and 8 would be cached
            stack.swap_adapter(files[1])
        return {}

    stack("a green circle", num_inference_steps=STEPS, callback_on_step_end=swap)
    kinds = [step.kind for step in stack.report().steps]
    assert kinds[6] != "full" and kinds[7] == "full"


def test_swaps_that_cannot_be(files: tuple[str, str], tmp_path: Path) -> None:
    pipe = tiny_pipe()
    before = picture(pipe)
    with pytest.raises(StackError, match="no switchable adapter here"):
        Stack(pipe).distill(files[0]).swap_adapter(files[1])
    stack = Stack(pipe).quantize("int8", min_features=64).distill(files[0], switchable=True).apply()
    with pytest.raises(StackError, match="unknown adapter"):
        stack.swap_adapter("nothing")
    assert stack.applied, "what the plan refuses leaves the stack as it was"
    save_file({"transformer.nowhere.lora_A.weight": torch.zeros(1, 1)}, tmp_path / "bad.safetensors")
    drawn = picture(stack)
    with pytest.raises(StackError, match="does not fit this model"):
        stack.swap_adapter(str(tmp_path / "bad.safetensors"))
    assert not stack.applied and torch.equal(picture(pipe), before)
    assert torch.equal(picture(stack), drawn), "the next call puts the old adapter on again"
    stack.undo()


def test_a_fused_adapter_is_replaced_from_the_unrounded_weights(files: tuple[str, str]) -> None:
    pipe = tiny_pipe()
    stack = Stack(pipe).quantize("int8", min_features=64).distill(files[0]).apply()
    stack.replace(Distill(files[1]))
    replaced = picture(stack)
    stack.undo()
    with Stack(pipe).quantize("int8", min_features=64).distill(files[1]) as fresh:
        assert torch.equal(picture(fresh), replaced)


def torchao_pipe() -> Any:
    """A tiny pipeline whose transformer came quantized, as one loaded with a quantization config does."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    pipe = tiny_pipe()
    quantize_(
        pipe.transformer.single_transformer_blocks,
        Int8WeightOnlyConfig(set_inductor_config=False),
        filter_fn=lambda module, _: isinstance(module, nn.Linear),
    )
    pipe.transformer.register_to_config(quantization_config={"quant_method": "torchao"})
    return pipe


def test_on_a_quantized_model_it_stays_beside_the_weights(files: tuple[str, str]) -> None:
    pipe = torchao_pipe()
    before = picture(pipe)
    stack = Stack(pipe).distill(files[0])
    assert [type(p) for p in stack.plan.passes()] == [Adapter]
    text = stack.explain()
    assert "[repaired] distill: the weights are already quantized by torchao" in text
    assert "0.5 % of it would survive" in text and "as a branch of its own" in text
    weight = pipe.transformer.single_transformer_blocks[0].proj_mlp.weight
    drawn = picture(stack)
    side = pipe.transformer.single_transformer_blocks[0].proj_mlp
    assert isinstance(side, SideLinear) and side.base.weight is weight
    plain = tiny_pipe()
    with Stack(plain).distill(files[0]):
        wanted = picture(plain)
    assert (drawn - wanted).norm() < 0.2 * (before - wanted).norm()
    assert "the adapter stays beside them" in str(stack.report())
    stack.swap_adapter(files[1])
    assert not torch.equal(picture(stack), drawn)
    stack.undo()
    assert torch.equal(picture(pipe), before)


def test_merging_into_packed_weights_or_a_strict_plan_is_refused(files: tuple[str, str]) -> None:
    pipe = torchao_pipe()
    before = picture(pipe)
    with pytest.raises(StackError, match=r"already quantized by torchao .*stays beside them"):
        Stack(pipe, strict=True).distill(files[0]).explain()
    with pytest.raises(StackError, match="is not merged into the packed weights of single_transformer_blocks"):
        Stack(pipe).distill(files[0], merge=True).apply()
    assert torch.equal(picture(pipe), before)
