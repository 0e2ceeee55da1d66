from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from predictability_maps import explained, over_time

from stack.compat.subspace import principal_basis

SHAPE = (2, 12, 8)


def drawn(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99), st.floats(0.2, 0.95))
def test_a_straight_line_is_explained_and_a_reversal_is_worse_than_reuse(seed: int, energy: float) -> None:
    start, slope = drawn(seed), drawn(seed + 1000)
    basis = principal_basis(start, energy)
    line = explained(start, start + slope, start + 2 * slope, basis)
    assert line.principal == pytest.approx(1) and line.residual == pytest.approx(1)
    back = explained(start, start + slope, start, basis)  # the error is twice the change
    assert back.principal == pytest.approx(-3) and back.residual == pytest.approx(-3)
    assert line.change == pytest.approx(float(slope.norm() / (start + 2 * slope).norm()))


def test_the_parts_are_told_apart() -> None:
    start = drawn(0)
    basis = principal_basis(start, 0.6)
    inside = (drawn(1) @ basis) @ basis.mT
    outside = drawn(2) - (drawn(2) @ basis) @ basis.mT
    # The principal part goes on, the residual turns round.
    found = explained(start, start + inside + outside, start + 2 * inside, basis)
    assert found.principal == pytest.approx(1) and found.residual == pytest.approx(-3)
    share = float(outside.square().sum() / (outside.square().sum() + inside.square().sum()))
    assert found.residual_change == pytest.approx(share)


def test_every_step_that_has_two_gaps_behind_it() -> None:
    features = [drawn(0) + s * drawn(1) + s**2 * drawn(2) for s in range(10)]
    found = over_time(features, 3, 0.9)
    assert len(found) == 4
    # A parabola: change 3 a1 + (2 s - 3) 3 a2, error 18 a2, whatever the part.
    for s, p in zip(range(6, 10), found, strict=True):
        change = 3 * drawn(1) + (s**2 - (s - 3) ** 2) * drawn(2)
        moved, missed = float(change.square().sum()), float((18 * drawn(2)).square().sum())
        total = p.residual_change * p.residual + (1 - p.residual_change) * p.principal
        assert total == pytest.approx(1 - missed / moved, rel=1e-6)
