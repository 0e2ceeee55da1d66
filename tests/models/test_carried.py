"""What other libraries put on a model is seen, and nothing where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from peft import LoraConfig

from stack import Stack, StackError
from stack.models.carried import CACHE, CAST, COMPILED, FUSED, LORA, OFFLOADED, carried_by

from ..conftest import tiny_denoiser

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
    assert carried_by(denoiser) == ()
    PUT_ON[name](denoiser)
    assert carried_by(denoiser) == (name,)
    assert Stack(denoiser).facts.carries == (name,)


@pytest.mark.parametrize("name", TAKEN_OFF)
def test_it_is_seen_to_be_gone(name: str) -> None:
    denoiser = tiny_denoiser()
    PUT_ON[name](denoiser)
    TAKEN_OFF[name](denoiser)
    assert carried_by(denoiser) == ()


def test_a_stack_is_refused_before_anything_changes() -> None:
    denoiser = tiny_denoiser()
    PUT_ON[CACHE](denoiser)
    with pytest.raises(StackError, match=r"carries a cache of diffusers .*disable_cache\(\) \(rule two-caches\)"):
        Stack(denoiser, steps=14).cache("svd").apply()
    assert denoiser.is_cache_enabled
