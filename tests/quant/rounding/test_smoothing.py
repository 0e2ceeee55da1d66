"""Balance: the same product in exact arithmetic, and a much smaller int8 error where inputs have outlier channels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stack.core.errors import StackError
from stack.core.facts import machine_of
from stack.quant.kernels.product import kernel_for
from stack.quant.linears.corrected import Balanced
from stack.quant.linears.int8 import Int8Linear
from stack.quant.rounding.smoothing import balance

# 4 of 128 input channels 60 times as large: int8 errs this many times less behind balance.
OUTLIER_GAIN = 3.0
KERNEL = kernel_for(machine_of(torch.device("cpu")))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 999), strength=st.floats(0, 1), inner=st.integers(1, 40), spread=st.floats(0, 12))
def test_the_product_is_the_same(seed: int, strength: float, inner: int, spread: float) -> None:
    """Powers of two change exponents only: the products are equal bit for bit, term by term."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.exp(spread * (torch.rand(inner, generator=generator) - 0.5))
    x = torch.randn(9, inner, generator=generator) * scale
    weight = torch.randn(5, inner, generator=generator)
    divisor = balance(x.abs().amax(0), weight, strength)
    assert torch.equal(divisor.log2(), divisor.log2().round())
    assert torch.equal((x / divisor)[:, None] * (weight * divisor), x[:, None] * weight)
    assert torch.equal((x * divisor.reciprocal())[:, None] * (weight * divisor), x[:, None] * weight)


def test_outlier_channels_cost_int8_far_less() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 128)
    x[:, :4] *= 60.0
    linear = nn.Linear(128, 96)
    linear.weight.data = torch.randn(96, 128) * 0.1
    divisor = balance(x.abs().amax(0), linear.weight)
    scaled = nn.Linear(128, 96)
    scaled.weight.data, scaled.bias = linear.weight.data * divisor, linear.bias
    wanted = linear(x)
    modules = (Int8Linear(linear, KERNEL), Balanced(Int8Linear(scaled, KERNEL), divisor))
    plain, smooth = (float((module(x) - wanted).detach().norm()) for module in modules)
    assert smooth < plain / OUTLIER_GAIN


def test_strength_says_who_is_evened_out() -> None:
    peak, weight = torch.tensor([64.0, 1.0]), torch.tensor([[1.0, 1.0 / 64]])
    assert balance(peak, weight, 1.0).log2().diff().item() == -6
    assert balance(peak, weight, 0.0).log2().diff().item() == 6
    assert balance(peak, weight, 0.5).tolist() == [1.0, 1.0]


def test_dead_channels_are_left_alone() -> None:
    divisor = balance(torch.tensor([0.0, 8.0, 2.0]), torch.tensor([[1.0, 0.0, 2.0]]))
    assert divisor[0] == divisor[1] == 1 and divisor.isfinite().all()
    with pytest.raises(StackError, match=r"in \[0, 1\], got 2"):
        balance(torch.ones(3), torch.ones(2, 3), 2)
