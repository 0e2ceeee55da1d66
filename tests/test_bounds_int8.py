"""The int8 bounds hold for the code that rounds, on inputs chosen to break them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stack.bounds import int8_matmul_bound, rounding_bound
from stack.core.facts import machine_of
from stack.quant.kernels.product import Kernel, kernel_for
from stack.quant.kernels.rows import ROW_LEVELS, ZERO, quantize_rows, quantize_weight
from stack.quant.linears.int8 import Int8Linear

HERE = kernel_for(machine_of(torch.device("cpu")))
KERNELS = [HERE, Kernel("int_mm", 127, "portable")]
KINDS = ("gauss", "outlier", "zero", "constant", "alternating", "uniform", "halves", "tiny", "huge")


def adversarial(kind: str, rows: int, columns: int, seed: int) -> torch.Tensor:
    """Matrices that are hard to round."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    signs = torch.where(torch.arange(columns) % 2 == 0, 1.0, -1.0)
    return {
        "gauss": x,
        "outlier": x.index_put((torch.tensor([0]), torch.tensor([columns - 1])), torch.tensor(1e4)),
        "zero": x * (torch.arange(rows) % 2)[:, None],
        "constant": torch.full_like(x, 0.7),
        "alternating": signs.expand(rows, columns).clone(),
        "uniform": torch.rand(rows, columns, generator=generator) * 2 - 1,
        # Everything but the largest element lies halfway between two levels, where rounding errs most.
        "halves": torch.cat([torch.full((rows, 1), 127.0), torch.full((rows, columns - 1), 2.5)], 1),
        "tiny": x * 1e-25,
        "huge": x * 1e15,
    }[kind]


sizes = st.integers(1, 70)
seeds = st.integers(0, 10_000)
kinds = st.sampled_from(KINDS)


@settings(deadline=None, max_examples=40)
@given(kind=kinds, rows=sizes, columns=st.integers(1, 200), seed=seeds, dtype=st.sampled_from(["float32", "bfloat16"]))
def test_rows_are_rounded_within_half_a_step(kind: str, rows: int, columns: int, seed: int, dtype: str) -> None:
    x = adversarial(kind, rows, columns, seed).to(getattr(torch, dtype))
    values, step = quantize_rows(x)
    back = (values.double() - ZERO) * step.double()
    slack = step * 2**-15  # float32 arithmetic on up to 127 levels
    assert bool(((x.double() - back).abs() <= rounding_bound(step) + slack).all())
    assert int(values.min()) >= ZERO - ROW_LEVELS
    # Steps of rows in bf16 are numbers in bf16.
    rounding = 1e-6 if dtype == "float32" else 2**-8
    assert torch.allclose(step, x.float().abs().amax(1, keepdim=True) / ROW_LEVELS, rtol=rounding, atol=0)
    assert torch.equal(step, step.to(x.dtype).float())


def test_half_a_step_is_reached() -> None:
    """The bound is not merely large: halves come within one per cent of it."""
    x = adversarial("halves", 3, 9, 0)
    values, step = quantize_rows(x)
    worst = (x - (values.float() - ZERO) * step).abs().max()
    assert worst > 0.99 * rounding_bound(step).max()


@settings(deadline=None, max_examples=30)
@given(kind=kinds, rows=sizes, columns=st.integers(1, 200), seed=seeds, levels=st.sampled_from([64, 127]))
def test_weights_are_rounded_within_half_a_step(kind: str, rows: int, columns: int, seed: int, levels: int) -> None:
    weight = adversarial(kind, rows, columns, seed)
    values, step = quantize_weight(weight, levels)
    error = (weight.double() - values.double() * step[:, None].double()).abs()
    assert bool((error <= (rounding_bound(step) + step * 2**-15)[:, None]).all())
    assert int(values.abs().max()) <= levels


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@settings(deadline=None, max_examples=40)
@given(
    row_kind=kinds,
    weight_kind=kinds,
    rows=sizes,
    inner=st.integers(1, 200),
    outer=sizes,
    seed=seeds,
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_the_int8_product_stays_within_its_bound(
    kernel: Kernel, row_kind: str, weight_kind: str, rows: int, inner: int, outer: int, seed: int, dtype: str
) -> None:
    x, weight = adversarial(row_kind, rows, inner, seed), adversarial(weight_kind, outer, inner, seed + 1)
    linear = nn.Linear(inner, outer, bias=False)
    linear.weight.data = weight
    x = x.to(getattr(torch, dtype))
    got = Int8Linear(linear, kernel)(x).double()
    x_step, w_step = quantize_rows(x).step.double(), quantize_weight(weight, kernel.weight_levels)[1].double()
    x_l1, w_l1 = x.double().abs().sum(1, keepdim=True), weight.double().abs().sum(1)
    bound = int8_matmul_bound(x_step, w_step, x_l1, w_l1, inner)
    # The last term of the bound is a quarter of a unit per summand; float32 sums of integers up to 255 * 127 * K,
    # corrected for the zero point, err by less than a hundredth of one.
    slack = 0.01 * inner * x_step * w_step + torch.finfo(torch.float32).tiny  # smaller products underflow
    if dtype == "bfloat16":  # rounded twice to 8 binary digits: before the rows' steps and after
        slack = slack + got.abs() * 2**-8 * 1.01
    error = (got - x.double() @ weight.double().T).abs()
    assert bool((error <= bound + slack).all()), f"{float((error - bound).max())} over the bound"


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_the_bound_is_within_reach(kernel: Kernel) -> None:
    """Halves against a constant weight: errors of one sign add up to over a third of the bound."""
    x = adversarial("halves", 4, 65, 0)
    linear = nn.Linear(65, 3, bias=False)
    linear.weight.data = torch.ones(3, 65)
    weight = linear.weight.data
    bound = int8_matmul_bound(
        quantize_rows(x).step,
        quantize_weight(weight, kernel.weight_levels)[1],
        x.abs().sum(1, keepdim=True),
        weight.sum(1),
        65,
    )
    error = (Int8Linear(linear, kernel)(x) - x @ weight.T).abs()
    assert error.min() > 0.1 * bound.max()
