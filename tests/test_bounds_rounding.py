"""What `explain()` says rounding may cost holds for the code that rounds: the bound always, the estimate usually."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stack.bounds import level_rounding_bound
from stack.core.facts import Facts, Machine, machine_of
from stack.quant.backends.native import Native
from stack.quant.errors import rounding_words, row_levels, typical_error, weight_levels
from stack.quant.formats import load, store
from stack.quant.kernels.product import kernel_for
from stack.quant.kernels.rows import ROW_LEVELS, ZERO, quantize_rows, quantize_weight
from stack.quant.quantize import Quantize
from stack.quant.schemes import SCHEMES, Scheme

from .test_bounds_product import KINDS, adversarial

seeds = st.integers(0, 10_000)
kinds = st.sampled_from(KINDS)
WIDTH = 512


def facts_of(vector: str = "AVX512", vnni: bool = True) -> Facts:
    machine = Machine("cpu", vector, vnni=vnni)
    return Facts("flux", machine, "float32", 4, WIDTH, 8, 64, 1024, 16, steps=20)


def largest_beside(weight: torch.Tensor, group: int) -> torch.Tensor:
    """For each weight the largest magnitude of those that share its scale, itself included."""
    group = group or weight.shape[1]
    tail = weight[:, -1:].expand(-1, -weight.shape[1] % group)
    wide = torch.cat([weight, tail], 1).unflatten(1, (-1, group)).abs().amax(2)
    return wide.repeat_interleave(group, 1)[:, : weight.shape[1]]


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@settings(deadline=None, max_examples=25)
@given(kind=kinds, rows=st.integers(2, 40), columns=st.integers(2, 150), seed=seeds)
def test_no_weight_is_off_by_more_than_the_bound(scheme: Scheme, kind: str, rows: int, columns: int, seed: int) -> None:
    weight = adversarial(kind, rows, columns, seed)
    error = (load(store(weight, scheme), torch.float32).double() - weight.double()).abs()
    largest = largest_beside(weight, scheme.group).double()
    bound = level_rounding_bound(weight_levels(scheme, facts_of()))
    assert bool((error <= bound * largest * (1 + 1e-3) + 1e-29).all())  # steps are never below 1e-30


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_the_bound_is_reached(scheme: Scheme) -> None:
    """A row that sweeps all values between its extremes meets the middle of the widest gap."""
    weight = torch.linspace(-1, 1, 64)[None] if scheme.group else torch.linspace(-1, 1, 9001)[None]
    if scheme.group:
        levels = weight_levels(scheme, facts_of())
        widest = (levels[1:] - levels[:-1]).argmax()
        weight[0, 32] = (levels[widest] + levels[widest + 1]) / 2
    error = (load(store(weight, scheme), torch.float32) - weight).abs().max()
    assert float(error) == pytest.approx(level_rounding_bound(weight_levels(scheme, facts_of())), rel=0.03)


@settings(deadline=None, max_examples=40)
@given(
    kind=kinds,
    rows=st.integers(1, 70),
    columns=st.integers(1, 200),
    seed=seeds,
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_no_input_is_off_by_more_than_the_bound(
    kind: str, rows: int, columns: int, seed: int, dtype: torch.dtype
) -> None:
    x = adversarial(kind, rows, columns, seed).to(dtype)
    values, step = quantize_rows(x)
    error = (x.double() - (values.double() - ZERO) * step.double()).abs()
    largest = x.double().abs().amax(1, keepdim=True)
    slack = 1e-3 if dtype == torch.float32 else 2**-8  # steps of rows in bf16 are numbers in bf16
    assert bool((error <= level_rounding_bound(row_levels(SCHEMES["int8"])) * largest * (1 + slack) + 1e-29).all())
    assert int(values.min()) >= ZERO - ROW_LEVELS
    assert torch.allclose(step, x.float().abs().amax(1, keepdim=True) / ROW_LEVELS, rtol=max(1e-6, slack), atol=1e-30)
    assert torch.equal(step, step.to(x.dtype).float())


@settings(deadline=None, max_examples=30)
@given(kind=kinds, rows=st.integers(1, 70), columns=st.integers(1, 200), seed=seeds, vnni=st.booleans())
def test_no_int8_weight_is_off_by_more_than_its_kernel_allows(
    kind: str, rows: int, columns: int, seed: int, vnni: bool
) -> None:
    weight, facts = adversarial(kind, rows, columns, seed), facts_of("AVX2", vnni)
    levels = kernel_for(facts.machine).weight_levels
    values, step = quantize_weight(weight, levels)
    error = (weight.double() - values.double() * step[:, None].double()).abs()
    bound = level_rounding_bound(weight_levels(SCHEMES["int8"], facts))
    assert bool((error <= bound * weight.double().abs().amax(1, keepdim=True) * (1 + 1e-3) + 1e-29).all())
    assert int(values.abs().max()) <= levels == (127 if vnni else 64)


@pytest.mark.parametrize("scheme", [SCHEMES["int8"], SCHEMES["int8-weight"], SCHEMES["nf4"], SCHEMES["int4-weight"]])
@pytest.mark.parametrize("width", [128, 1024])
def test_outputs_of_gaussian_layers_are_off_by_about_the_estimate(scheme: Scheme, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(width, 256, bias=False)
    linear.weight.data = torch.randn(256, width, generator=generator)
    x = torch.randn(256, width, generator=generator)
    facts = replace(facts_of(), width=width, machine=machine_of(torch.device("cpu")))
    truth = linear(x)
    (rounded,) = Native().convert([linear], scheme)
    error = ((rounded(x) - truth).norm() / truth.norm()).detach()
    said = float(rounding_words(scheme, facts).split("an output by about ")[1].split("%")[0]) / 100
    assert float(error) == pytest.approx(said, rel=0.1)


def test_the_estimate_in_closed_form() -> None:
    """255 levels to the median of the largest of 128: a step over sqrt(12), 2.78 / 127 / 3.46."""
    even = torch.arange(-127, 128) / 127
    assert typical_error(even, 128) == pytest.approx(2.783 / 127 / 12**0.5, rel=0.01)
    assert typical_error(even, 1024) > typical_error(even, 128) > typical_error(torch.arange(-999, 1000) / 999, 128)


@pytest.mark.parametrize(
    ("scheme", "vnni", "words"),
    [
        ("int8", True, "a weight or input is off by at most 0.39% of"),
        ("int8", False, "a weight or input is off by at most 0.78% of"),
        ("int8-weight", False, "a weight is off by at most 0.39% of"),
        ("int4-weight", True, "a weight is off by at most 6.67% of"),
        ("nf4", True, "a weight is off by at most 15.19% of"),
        ("fp8-weight", True, "a weight is off by at most 3.57% of"),
    ],
)
def test_explain_says_it_in_one_line(scheme: str, vnni: bool, words: str) -> None:
    lines = [line for line in Quantize(scheme, backend="native").describe(facts_of("AVX2", vnni)) if "error:" in line]
    assert len(lines) == 1 and lines[0].startswith(f"{scheme} error: {words}")
