"""Documented bounds of int8 products hold for `Int8Linear` and its rounding, on inputs chosen to break them."""

from __future__ import annotations

import pytest
import torch
from boundbench.documented import int8_matmul_bound, int8_matmul_likely_bound
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stack.core.facts import machine_of
from stack.quant.kernels.product import Kernel, kernel_for
from stack.quant.kernels.rows import ZERO, quantize_rows, quantize_weight
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


@settings(deadline=None, max_examples=25)
@given(inner=st.integers(8, 600), kind=st.sampled_from(["normal", "uniform", "outlier"]), seed=seeds)
def test_roundings_that_know_nothing_of_each_other_stay_within_the_likely_bound(
    inner: int, kind: str, seed: int
) -> None:
    """1,024 outputs at a chance of one in a thousand each: by Hoeffding far fewer, and never more than eight."""
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(32, inner, generator=generator, dtype=torch.float64) for _ in range(2))
    if kind == "uniform":
        x, w = x.erf(), w.erf()
    if kind == "outlier":
        x[:, 0] *= 20
    values, x_step = quantize_rows(x.float())
    codes, w_step = quantize_weight(w.float(), 127)
    x_step, w_step = x_step.double(), w_step.double()
    got = ((values.double() - ZERO) * x_step) @ (codes.double() * w_step[:, None]).mT
    error = (got - x @ w.mT).abs()
    likely = int8_matmul_likely_bound(x_step, w_step, x.norm(dim=1, keepdim=True), w.norm(dim=1), inner, 1e-3)
    assert int((error > likely).sum()) <= 8
    if inner >= 64:  # where it is of use
        sure = int8_matmul_bound(x_step, w_step, x.abs().sum(1, keepdim=True), w.abs().sum(1), inner)
        assert bool((likely < sure).all())


def test_roundings_of_one_sign_break_the_likely_bound_and_not_the_sure_one() -> None:
    """Its assumption matters: halves are all rounded the same way."""
    inner = 4096
    x = torch.cat([torch.full((1, 1), 127.0), torch.full((1, inner - 1), 2.5)], 1).double()
    values, step = quantize_rows(x.float())
    error = abs(float(((values.double() - ZERO) * step.double() - x).sum()))
    ones, steps = torch.ones(1, inner).double(), torch.tensor([1e-9]).double()
    likely = int8_matmul_likely_bound(step.double(), steps, x.norm(dim=1, keepdim=True), ones.norm(dim=1), inner, 1e-3)
    sure = int8_matmul_bound(step.double(), steps, x.sum(1, keepdim=True), ones.sum(1), inner)
    assert float(likely) < error <= float(sure)
