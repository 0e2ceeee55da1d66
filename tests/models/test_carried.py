"""What other libraries put on a model is seen, and nothing where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import CpuOffload, ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import FirstBlockCacheConfig
from peft import LoraConfig

from stack import Stack, StackError
from stack.distill.side import SideLinear
from stack.models.preexisting import CACHE, CAST, COMPILED, FUSED, LORA, OFFLOADED, execution_device, preexisting_on
from stack.runtime.conditions import ConditionsReader

from ..conftest import inputs, tiny_denoiser
from ..lora import save_lora

PUT_ON: dict[str, Callable[[Any], Any]] = {
    CAST: lambda m: m.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32),
    LORA: lambda m: m.add_adapter(LoraConfig(r=2, target_modules=["to_q"])),
    FUSED: lambda m: m.fuse_qkv_projections(),
    OFFLOADED: lambda m: m.enable_group_offload(torch.device("cpu"), offload_type="leaf_level"),
    CACHE: lambda m: m.enable_cache(FirstBlockCacheConfig(threshold=0.1)),
    COMPILED: lambda m: m.compile_repeated_blocks(),
}
TAKEN_OFF: dict[str, Callable[[Any], Any]] = {
    FUSED: lambda m: m.unfuse_qkv_projections(),
    CACHE: lambda m: m.disable_cache(),
    LORA: lambda m: m.unload_lora(),
}


@pytest.mark.parametrize("name", PUT_ON)
def test_it_is_seen(name: str) -> None:
    denoiser = tiny_denoiser()
    assert preexisting_on(denoiser) == ()
    PUT_ON[name](denoiser)
    assert preexisting_on(denoiser) == (name,)
    assert Stack(denoiser).facts.carries == (name,)


@pytest.mark.parametrize("name", TAKEN_OFF)
def test_it_is_seen_to_be_gone(name: str) -> None:
    denoiser = tiny_denoiser()
    PUT_ON[name](denoiser)
    TAKEN_OFF[name](denoiser)
    assert preexisting_on(denoiser) == ()


def test_a_stack_is_refused_before_anything_changes() -> None:
    denoiser = tiny_denoiser()
    PUT_ON[CACHE](denoiser)
    with pytest.raises(StackError, match=r"carries a cache of diffusers .*disable_cache\(\) \(rule two-caches\)"):
        Stack(denoiser, steps=14).cache("svd").apply()
    assert denoiser.is_cache_enabled


def test_a_branch_beside_cast_weights_is_computed_in_full_precision(tmp_path: Path) -> None:
    """The plan says that the weights were cast, and the branch keeps what it adds."""
    denoiser = tiny_denoiser()
    updates = save_lora(denoiser, tmp_path, prefix="")
    PUT_ON[CAST](denoiser)
    with torch.no_grad():
        before = denoiser(**inputs()).sample
        with Stack(denoiser, steps=4).distill(str(tmp_path), steps=4, shift=1.0) as stack:
            assert "rule unscaled-fp8" in stack.explain() and "rule merge-into-rounded" in stack.explain()
            after = denoiser(**inputs()).sample
            sides = [m for m in denoiser.modules() if isinstance(m, SideLinear)]
    assert len(sides) == len(updates) and all(side.up.dtype is torch.float32 for side in sides)
    assert float((after - before).norm() / before.norm()) > 1e-3


def test_under_fused_projections_an_update_would_be_lost() -> None:
    """Why it is refused: what is written to q, k and v is no longer read."""
    denoiser = tiny_denoiser()
    PUT_ON[FUSED](denoiser)
    with torch.no_grad():
        before = denoiser(**inputs()).sample
        for attention in (block.attn for block in denoiser.transformer_blocks):
            for linear in (attention.to_q, attention.to_k, attention.to_v):
                linear.weight.mul_(3)
        assert torch.equal(denoiser(**inputs()).sample, before)


@pytest.mark.parametrize("in_a_sequence", [False, True])
def test_the_device_is_that_of_the_offloading_hook(in_a_sequence: bool) -> None:
    denoiser = tiny_denoiser()
    assert execution_device(denoiser) == torch.device("cpu")
    add_hook_to_module(denoiser, ModelHook())
    add_hook_to_module(denoiser, CpuOffload(torch.device("meta")), append=in_a_sequence)
    assert execution_device(denoiser) == torch.device("meta")
    grouped = tiny_denoiser()
    grouped.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    registries = [vars(m)["_diffusers_hook"] for m in grouped.modules() if "_diffusers_hook" in vars(m)]
    for registry in registries:
        if hook := registry.get_hook("group_offloading"):
            hook.group.onload_device = torch.device("meta")  # stands for an accelerator
    assert execution_device(grouped) == torch.device("meta")


def test_a_stack_stands_behind_the_hook_of_a_whole_model_and_comes_off_wherever_that_has_gone() -> None:
    """`enable_model_cpu_offload` takes its hooks off and puts them on again after every pipeline call."""
    denoiser, given = tiny_denoiser(), inputs()
    with torch.no_grad():
        expected = denoiser(**given)[0]
    moved: list[str] = []

    class Moves(ModelHook):
        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            moved.append("moved")
            return args, kwargs

    class Sees(ConditionsReader):
        def begin(self, *args: Any) -> None:
            moved.append("looked")
            super().begin(*args)

    for before, after in ((True, True), (True, False), (False, True)):
        if before:
            add_hook_to_module(denoiser, Moves())
        stack = Stack(denoiser, steps=4)
        stack._target.conditions = Sees(denoiser, (), lambda: 0)
        stack.apply()
        if before:
            remove_hook_from_module(denoiser)
        if after:
            add_hook_to_module(denoiser, Moves())
        moved.clear()
        with torch.no_grad():
            assert torch.equal(denoiser(**given)[0], expected)
        assert moved == (["moved", "looked"] if after else ["looked"])
        stack.undo()
        remove_hook_from_module(denoiser)
        moved.clear()
        with torch.no_grad():
            assert torch.equal(denoiser(**given)[0], expected)
        assert moved == []


def test_weights_stored_in_fp8_are_no_rounded_activations() -> None:
    denoiser = tiny_denoiser()
    denoiser.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    stack = Stack(denoiser, steps=14).cache("svd")
    assert stack.facts.activation_bits == 16 and not stack.facts.rounds_activations
    assert "8-bit activations" not in stack.explain()
