"""Changed weights are noticed, however they change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers.hooks import apply_group_offloading
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stack.runtime.conditions import WeightsWatch
from stack.runtime.fingerprint import Content, leaves

from ..reads import CountReads


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 3000),
    where=st.integers(0, 10**6),
    bit=st.integers(0, 15),
    dtype=st.sampled_from([torch.bfloat16, torch.int8]),
)
def test_any_flipped_bit_shows(size: int, where: int, bit: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tensor = torch.randint(-100, 100, (size,), dtype=torch.int8).to(dtype)
    before = Content([tensor]).value
    raw = tensor.view(torch.uint8)
    raw[where % len(raw)] ^= 1 << (bit % 8)
    assert Content([tensor]).value != before
    raw[where % len(raw)] ^= 1 << (bit % 8)
    assert Content([tensor]).value == before


@pytest.mark.parametrize("swap", [([0, 1], [1, 0]), ([3, 500], [500, 3]), ([7, 7 + 512], [7 + 512, 7])])
def test_exchanged_values_show(swap: tuple[list[int], list[int]]) -> None:
    tensor = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    moved = tensor.clone()
    moved[swap[0]] = tensor[swap[1]]
    assert Content([moved]).value != Content([tensor]).value
    assert Content([tensor, moved]).value != Content([moved, tensor]).value


def test_it_is_of_the_content_not_of_the_place() -> None:
    tensor = torch.randn(70, 33, generator=torch.Generator().manual_seed(0))
    assert Content([tensor]).value == Content([tensor.clone()]).value == Content([tensor.t().contiguous().t()]).value


def in_place(linear: nn.Linear) -> None:
    with torch.no_grad():
        linear.weight[0, 0] += 1e-3


def loaded(linear: nn.Linear) -> None:
    linear.load_state_dict({name: tensor + 1 for name, tensor in linear.state_dict().items()})


def exchanged(linear: nn.Linear) -> None:
    linear.weight.data = linear.weight.data * 2


@pytest.mark.parametrize("change", [in_place, loaded, exchanged])
def test_a_change_between_two_steps_of_a_request_is_seen(change: Callable[[nn.Linear], None]) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(8, 8)
    watch = WeightsWatch(linear)
    before = watch(1)
    assert watch(1) == before
    change(linear)
    assert watch(1) != before


def test_nothing_is_read_back_while_the_weights_stay() -> None:
    watch = WeightsWatch(nn.Linear(8, 8))
    with CountReads() as reads:
        assert [watch(1), watch(1), watch(2)] == [0, 0, 0]
    assert reads.count == 0


def test_content_is_read_once_and_only_to_be_compared() -> None:
    tensors = [torch.randn(n) for n in range(1, 40)]
    with CountReads() as reads:
        mine = Content(tensors)
        assert mine == mine
        assert reads.count == 0
        assert mine == Content([x.clone() for x in tensors])
        assert reads.count == 2
        assert mine != Content(tensors[1:])
        assert reads.count == 3


def test_weights_of_tensor_subclasses_are_read_through_their_parts() -> None:
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = nn.Sequential(nn.Linear(64, 64))
    quantize_(model, Int8WeightOnlyConfig())
    (weight,) = (p for p in model.parameters() if p.ndim == 2)
    parts = list(leaves(weight))
    assert {part.dtype for part in parts} >= {torch.int8} and len(parts) >= 2
    before, watch = Content([weight]).value, WeightsWatch(model)
    assert watch(1) == 0
    with torch.no_grad():
        next(part for part in parts if part.dtype == torch.int8)[0, 0] += 1
    assert Content([weight]).value != before
    assert watch(1) == 1


def group_offloaded(model: nn.Module) -> None:
    apply_group_offloading(model, onload_device=torch.device("cpu"), offload_type="leaf_level")


def sequentially_offloaded(model: nn.Module) -> None:
    cpu_offload(model, execution_device=torch.device("cpu"))


@pytest.mark.parametrize("offload", [group_offloaded, sequentially_offloaded])
def test_tensors_that_offloading_hooks_exchange_are_no_change(offload: Callable[[nn.Module], Any]) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    offload(model)
    watch = WeightsWatch(model)
    for _ in range(3):
        assert watch(1) == 0
        model(torch.zeros(1, 8))
    model[1] = nn.Linear(8, 4)
    assert watch(1) == 1


def test_a_part_of_a_tensor_is_read_wherever_it_begins() -> None:
    whole = torch.arange(400, dtype=torch.float32)
    for start in range(5):
        assert Content([whole[start : start + 300]]) == Content([whole[start : start + 300].clone()])
