"""Error feedback: never worse than plain rounding under the same moment, and much better on correlated inputs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.quant.formats import load
from stack.quant.rounding.feedback import damped, output_error, round_with_feedback
from stack.quant.rounding.grids import RoundingGrid, fitted
from stack.quant.schemes import SCHEMES


def correlated(rows: int, inner: int, rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (rows, inner) and the second moment of inputs that lie mostly in a subspace."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400, rank, generator=generator) @ torch.randn(rank, inner, generator=generator)
    x = x + 0.2 * torch.randn(400, inner, generator=generator)
    return torch.randn(rows, inner, generator=generator) * 0.05, x.T @ x / 400


@pytest.mark.parametrize("name", ["nf4", "int4-weight"])
def test_correlated_inputs_leave_a_third_of_the_error(name: str) -> None:
    weight, moment = correlated(64, 128, 16, 0)
    grid = RoundingGrid(SCHEMES[name])
    plain = output_error(grid.decoded(fitted(weight, grid)) - weight, moment).sum()
    back = output_error(grid.decoded(round_with_feedback(weight, grid, moment, sweeps=0)) - weight, moment).sum()
    swept = output_error(grid.decoded(round_with_feedback(weight, grid, moment)) - weight, moment).sum()
    assert back < 0.4 * plain
    assert swept < 0.92 * back


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 12),
    inner=st.integers(2, 90),
    rank=st.integers(1, 8),
    seed=st.integers(0, 999),
    name=st.sampled_from(["nf4", "int4-weight"]),
    group=st.sampled_from([8, 32]),
)
def test_it_is_never_worse_than_plain_rounding(
    rows: int, inner: int, rank: int, seed: int, name: str, group: int
) -> None:
    weight, moment = correlated(rows, inner, rank, seed)
    grid = RoundingGrid(replace(SCHEMES[name], group=group))
    plain = fitted(weight, grid, damped(moment).diagonal())
    found = round_with_feedback(weight, grid, moment)
    errors = [output_error(grid.decoded(r) - weight, damped(moment)) for r in (plain, found)]
    assert bool((errors[1] <= errors[0] * (1 + 1e-5)).all())
    # What is stored is what was judged, bit for bit.
    assert torch.equal(load(grid.stored(found), torch.float32), grid.decoded(found))


def test_rows_of_three_weights_come_near_the_best_codes_there_are() -> None:
    """Against every combination of 16 codes at the steps that were found."""
    weight, moment = correlated(20, 3, 2, 5)
    grid = RoundingGrid(replace(SCHEMES["nf4"], group=4))
    found = round_with_feedback(weight, grid, moment, sweeps=3)
    levels = torch.tensor(list(itertools.product(grid.levels(torch.device("cpu")).tolist(), repeat=3)))
    got = output_error(grid.decoded(found) - weight, damped(moment))
    least = torch.stack(
        [output_error(levels * step - row, damped(moment)).min() for step, row in zip(found.step, weight, strict=True)]
    )
    assert bool((got >= least * (1 - 1e-4)).all())
    assert float(got.sum()) < 2 * float(least.sum())
    assert int((got <= least * (1 + 1e-4)).sum()) >= 10


def test_uncorrelated_inputs_leave_nothing_to_feed_back() -> None:
    weight, _ = correlated(16, 64, 4, 1)
    grid, moment = RoundingGrid(SCHEMES["nf4"]), torch.eye(64)
    plain = output_error(grid.decoded(fitted(weight, grid)) - weight, moment).sum()
    back = output_error(grid.decoded(round_with_feedback(weight, grid, moment)) - weight, moment).sum()
    assert 0.9 * plain < back <= plain


def test_channels_that_never_were_on_do_no_harm() -> None:
    weight, moment = correlated(8, 32, 4, 2)
    moment[:, 5] = moment[5] = 0
    grid = RoundingGrid(replace(SCHEMES["nf4"], group=32))
    found = grid.decoded(round_with_feedback(weight, grid, moment))
    assert float((found - weight).abs().max()) < 0.25
    nothing = grid.decoded(round_with_feedback(weight, grid, torch.zeros(32, 32)))
    assert float((nothing - weight).norm() / weight.norm()) < 0.12
