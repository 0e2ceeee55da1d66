"""Changed weights are noticed, however they change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stack.compat.content import WeightsWatch, fingerprint


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
    before = fingerprint([tensor])
    raw = tensor.view(torch.uint8)
    raw[where % len(raw)] ^= 1 << (bit % 8)
    assert fingerprint([tensor]) != before
    raw[where % len(raw)] ^= 1 << (bit % 8)
    assert fingerprint([tensor]) == before


@pytest.mark.parametrize("swap", [([0, 1], [1, 0]), ([3, 500], [500, 3]), ([7, 7 + 512], [7 + 512, 7])])
def test_exchanged_values_show(swap: tuple[list[int], list[int]]) -> None:
    tensor = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    moved = tensor.clone()
    moved[swap[0]] = tensor[swap[1]]
    assert fingerprint([moved]) != fingerprint([tensor])
    assert fingerprint([tensor, moved]) != fingerprint([moved, tensor])


def test_it_is_of_the_content_not_of_the_place() -> None:
    tensor = torch.randn(70, 33, generator=torch.Generator().manual_seed(0))
    assert fingerprint([tensor]) == fingerprint([tensor.clone()]) == fingerprint([tensor.t().contiguous().t()])


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


def test_an_edit_that_torch_does_not_count_is_seen_by_the_next_request() -> None:
    linear = nn.Linear(8, 8)
    watch = WeightsWatch(linear)
    before = watch(1)
    linear.weight.data[0, 0] += 1
    assert watch(1) == before
    assert watch(2) != before


def test_weights_that_come_back_are_the_same_again() -> None:
    linear = nn.Linear(8, 8)
    watch, kept = WeightsWatch(linear), {name: t.clone() for name, t in linear.state_dict().items()}
    before = watch(1)
    loaded(linear)
    assert watch(2) != before
    linear.load_state_dict(kept)
    assert watch(3) == before


def test_a_part_of_a_tensor_is_read_wherever_it_begins() -> None:
    whole = torch.arange(400, dtype=torch.float32)
    for start in range(5):
        assert fingerprint([whole[start : start + 300]]) == fingerprint([whole[start : start + 300].clone()])
