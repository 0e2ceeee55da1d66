"""Grids: the same levels as the stored formats, steps that cost least, groups that do not divide."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stack.quant.formats import load, store
from stack.quant.rounding.grids import RoundingGrid, fitted
from stack.quant.schemes import SCHEMES


@pytest.mark.parametrize("name", ["nf4", "int4-weight"])
@pytest.mark.parametrize("inner", [64, 70, 200])
def test_a_fitted_weight_is_stored_bit_for_bit_and_closer_than_absmax(name: str, inner: int) -> None:
    weight = torch.randn(30, inner) * 0.1
    grid = RoundingGrid(SCHEMES[name])
    found = fitted(weight, grid)
    stored = grid.stored(found)
    assert torch.equal(load(stored, torch.float32), grid.decoded(found))
    plain = load(store(weight.bfloat16(), SCHEMES[name]), torch.float32)
    errors = [float((w - weight).square().sum()) for w in (grid.decoded(found), plain)]
    assert errors[0] < errors[1]
    assert stored.values.nbytes == store(weight, SCHEMES[name]).values.nbytes


def test_important_channels_are_rounded_more_closely() -> None:
    weight, importance = torch.randn(40, 64), torch.ones(64)
    importance[3] = 1000.0
    grid = RoundingGrid(SCHEMES["nf4"])
    errors = [
        float((grid.decoded(fitted(weight, grid, each)) - weight)[:, 3].norm()) for each in (torch.ones(64), importance)
    ]
    assert errors[1] < 0.7 * errors[0]


def test_smaller_groups_cost_bytes_and_save_error() -> None:
    weight = torch.randn(32, 192) * torch.linspace(0.1, 3, 192)
    errors, sizes = [], []
    for group in (192, 64, 16):
        grid = RoundingGrid(replace(SCHEMES["nf4"], group=group))
        found = fitted(weight, grid)
        errors.append(float((grid.decoded(found) - weight).norm()))
        sizes.append(sum(t.nbytes for t in grid.stored(found).tensors()))
    assert errors == sorted(errors, reverse=True) and errors[2] < 0.85 * errors[0]
    assert sizes == [32 * (96 + 2 * n) for n in (1, 3, 12)]


def test_rows_of_zeros_stay_zeros() -> None:
    weight = torch.randn(3, 64)
    weight[1] = 0
    for name in ("nf4", "int4-weight"):
        grid = RoundingGrid(SCHEMES[name])
        assert float(grid.decoded(fitted(weight, grid))[1].abs().max()) == 0
