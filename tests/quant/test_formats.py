"""Stored weights: nothing is further off than half a step, and bits are real."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stack.core.errors import StackError
from stack.quant.backends.base import storage_bytes
from stack.quant.formats import NF4_LEVELS, load, store
from stack.quant.linears.weight_only import WeightOnlyLinear
from stack.quant.schemes import SCHEMES
from tests.test_bounds_product import adversarial, kinds, seeds

NAMES = ("int8-weight", "int4-weight", "nf4", "fp8-weight")


def largest_error(name: str, weight: torch.Tensor) -> torch.Tensor:
    """How far a rounded weight (N, K) in float32 may be off, element by element."""
    largest = weight.abs().amax(1, keepdim=True).expand_as(weight)
    if name == "int8-weight":
        return largest / 127 / 2
    if name == "fp8-weight":  # 3 binary digits; below 2^-6 evenly spaced
        return torch.maximum(weight.abs() * 2**-4, largest / 448 * 2**-10)
    groups = -(-weight.shape[1] // 64)
    padded = torch.cat([weight, weight[:, -1:].expand(-1, groups * 64 - weight.shape[1])], 1).view(
        len(weight), groups, 64
    )
    if name == "int4-weight":
        half = (padded.amax(2) - padded.amin(2)) / 15 / 2
    else:
        half = padded.abs().amax(2) * max(b - a for a, b in pairwise(NF4_LEVELS)) / 2
    return half[..., None].expand_as(padded).reshape(len(weight), -1)[:, : weight.shape[1]]


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=30)
@given(kind=kinds, rows=st.integers(1, 20), columns=st.integers(1, 200), seed=seeds)
def test_every_element_is_within_half_a_step(name: str, kind: str, rows: int, columns: int, seed: int) -> None:
    weight = adversarial(kind, rows, columns, seed)
    got = load(store(weight, SCHEMES[name]), torch.float32)
    bound = largest_error(name, weight) * (1 + 1e-4) + weight.abs().amax() * 1e-5 + 1e-28
    assert got.shape == weight.shape
    assert bool(((got - weight).abs() <= bound).all()), float(((got - weight).abs() - bound).max())


@pytest.mark.parametrize("name", NAMES)
def test_levels_come_back_exactly(name: str) -> None:
    """Rounding what was rounded changes nothing; rows of zeros stay zero."""
    weight = torch.randn(6, 130)
    weight[2] = 0
    once = load(store(weight, SCHEMES[name]), torch.float32)
    torch.testing.assert_close(load(store(once, SCHEMES[name]), torch.float32), once, rtol=1e-5, atol=1e-6)
    assert float(once[2].abs().max()) == 0 and not torch.equal(once, weight)


@pytest.mark.parametrize(("name", "share"), [("int8-weight", 0.5), ("int4-weight", 0.25), ("nf4", 0.25)])
def test_bytes_are_those_of_the_bits(name: str, share: float) -> None:
    weight = torch.randn(64, 1024, dtype=torch.bfloat16)
    stored = store(weight, SCHEMES[name])
    assert stored.values.nbytes == share * weight.nbytes
    assert storage_bytes(stored.tensors()) == stored.values.nbytes + stored.step.nbytes * (
        2 if stored.low is not None else 1
    )


@pytest.mark.parametrize("name", NAMES)
def test_more_channels_than_one_chunk(name: str) -> None:
    weight = torch.randn(300, 2048)
    whole = load(store(weight, SCHEMES[name]), torch.float32)
    assert torch.equal(whole[250:], load(store(weight[250:], SCHEMES[name]), torch.float32))


@pytest.mark.parametrize("name", NAMES)
def test_compiled_equals_eager(name: str) -> None:
    linear = WeightOnlyLinear(nn.Linear(130, 48), SCHEMES[name])
    x = torch.randn(3, 5, 130)
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), linear(x))


def test_weights_that_are_not_finite_are_refused() -> None:
    weight = torch.randn(4, 64)
    weight[1, 2] = float("inf")
    for name in NAMES:
        with pytest.raises(StackError, match="finite weights"):
            store(weight, SCHEMES[name])
