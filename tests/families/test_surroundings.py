"""A class is wired the same whatever the process is set to, and whatever subclass of it a user has."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.attention_dispatch import attention_backend
from torch.nn.attention import SDPBackend, sdpa_kernel

from stack import Stack
from stack.models.derive import wiring as derived
from stack.models.derive.wiring import wiring_of, wiring_of_class

from .pipelines.build import sd3

SMALL = {
    "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2, "in_channels": 12,
    "joint_attention_dim": 24, "pooled_projection_dim": 20, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip


@contextmanager
def default_dtype(dtype: torch.dtype) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "meta device": lambda: torch.device("meta"),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "cuDNN attention of diffusers": lambda: attention_backend("_native_cudnn"),
    "flex attention of diffusers": lambda: attention_backend("flex"),
    "cuDNN attention of torch": lambda: sdpa_kernel(SDPBackend.CUDNN_ATTENTION),
    "inference mode": torch.inference_mode,
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "SD3Transformer2DModel"])
def test_what_the_process_is_set_to_does_not_matter(name: str, state: str) -> None:
    cls = getattr(diffusers, name)
    usual = wiring_of_class(cls)
    derived._derived.cache_clear()
    drawn = torch.get_rng_state()
    with STATES[state]():
        there = wiring_of_class(cls)
        assert torch.get_default_dtype() == (getattr(torch, state) if "float" in state else torch.float32)
    assert (there.lacks, there.along, there.patch, there.inputs) == (
        usual.lacks,
        usual.along,
        usual.patch,
        usual.inputs,
    )
    assert there.attention == usual.attention and there.linears == usual.linears
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_failure_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    derived._derived.cache_clear()
    with monkeypatch.context() as broken:
        broken.setattr(FluxTransformer2DModel, "forward", lambda self, hidden_states, timestep: 1 / 0)
        assert "no small instance" in wiring_of_class(FluxTransformer2DModel).lacks["blocks"]
    assert not wiring_of_class(FluxTransformer2DModel).lacks


class Plain(FluxTransformer2DModel):  # type: ignore[misc]
    pass


class HandsOn(FluxTransformer2DModel):  # type: ignore[misc]
    def __init__(self, *args: Any, extra: Any = None, **kwargs: Any):
        super().__init__(*args, **kwargs)


class Wraps(FluxTransformer2DModel):  # type: ignore[misc]
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize("cls", [Plain, HandsOn, Wraps])
def test_a_subclass_is_wired_as_its_parent_is(cls: type) -> None:
    parent, child = wiring_of(FluxTransformer2DModel(**SMALL)), wiring_of(cls(**SMALL))
    assert (child.block_lists, child.streams, child.inputs) == (parent.block_lists, parent.streams, parent.inputs)
    assert child.lacks == parent.lacks == {} and child.flow_scale == parent.flow_scale == 1.0


def test_fastcache_where_the_last_block_returns_no_text() -> None:
    whole = sd3()
    plain = whole.call(num_inference_steps=24)
    with Stack(whole.pipe, steps=24).cache("fastcache", threshold=0.5) as stack:
        first, second = (whole.call(stack, num_inference_steps=24) for _ in range(2))
        assert torch.equal(first, second) and not torch.equal(first, plain)
        assert any(record.kind != "full" for record in stack.report().steps)
    assert torch.equal(whole.call(num_inference_steps=24), plain)
