"""The branch: best where the inputs are, and worth its rank on weights with a few strong directions."""

from __future__ import annotations

import torch

from stack.quant.linears.corrected import Branched
from stack.quant.rounding.grids import RoundingGrid, fitted
from stack.quant.rounding.lowrank import leading, with_branch
from stack.quant.schemes import SCHEMES

GRID = RoundingGrid(SCHEMES["nf4"])


def rounded(weight: torch.Tensor) -> torch.Tensor:
    return GRID.decoded(fitted(weight, GRID))


def strong(rows: int, inner: int, rank: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(rows, rank) @ torch.randn(rank, inner) + 0.3 * torch.randn(rows, inner)


def test_a_branch_takes_what_four_bits_cannot_hold() -> None:
    weight, ones = strong(64, 128, 4), torch.ones(128)
    branch = with_branch(weight, 4, ones, rounded)
    without = float((rounded(weight) - weight).norm())
    left = float((branch.product + rounded(weight - branch.product) - weight).norm())
    assert left < 0.25 * without


def test_more_turns_are_never_worse_and_help_a_flat_spectrum() -> None:
    torch.manual_seed(1)
    weight, ones = torch.randn(48, 64), torch.ones(64)
    errors = []
    for turns in (1, 2, 4):
        branch = with_branch(weight, 8, ones, rounded, turns)
        errors.append(float((branch.product + rounded(weight - branch.product) - weight).norm()))
    assert errors[0] >= errors[1] >= errors[2] and errors[2] < 0.99 * errors[0]


def test_power_decides_which_directions_are_kept() -> None:
    """Two orthogonal directions: the weaker one wins where the inputs are a hundred times as large."""
    weight = torch.zeros(4, 4)
    weight[0, 0], weight[1, 1] = 3.0, 1.0
    first = leading(weight, 1, torch.ones(4)).product
    assert abs(float(first[0, 0]) - 3) < 0.02 and abs(float(first[1, 1])) < 0.01
    power = torch.tensor([1.0, 100.0, 1.0, 1.0])
    kept = leading(weight, 1, power).product
    assert abs(float(kept[1, 1]) - 1) < 0.01 and abs(float(kept[0, 0])) < 0.01


def test_the_module_adds_the_branch() -> None:
    weight, x = strong(16, 32, 2), torch.randn(5, 32)
    branch = leading(weight, 2, torch.ones(32))
    inner = torch.nn.Linear(32, 16)
    module = Branched(inner, branch.left, branch.right)
    assert torch.allclose(module(x), inner(x) + x @ branch.product.T, atol=1e-4)
    assert list(module.state_dict()) == ["inner.weight", "inner.bias"]
