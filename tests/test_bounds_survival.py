"""How much of an update survives rounding: the closed form, and the measured table."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.bounds import merged_share, rounding_share


def rounded(weight: torch.Tensor, levels: int = 127) -> torch.Tensor:
    """Every row on a grid of its own, absmax / levels."""
    step = weight.abs().amax(1, keepdim=True) / levels
    return (weight / step).round() * step


@pytest.mark.parametrize(("relative", "merged"), [(0.003, 0.005), (0.01, 0.87), (0.03, 1.0)])
def test_int8_rows_merged_and_fused_first(relative: float, merged: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1024, 1024, generator=generator) * 0.02
    update = torch.randn(1024, 64, generator=generator) @ torch.randn(64, 1024, generator=generator)
    update *= relative * weight.norm() / update.norm()
    base = rounded(weight)
    assert float(rounding_share(base, rounded(base + update), update)) == pytest.approx(merged, abs=0.01)
    # Fused first, only the rounding itself differs from that of the base.
    assert float(rounding_share(base, rounded(weight + update), update)) == pytest.approx(1.0, abs=0.01)
    # The closed form knows neither the rows' own sizes nor that the grid moves.
    step = float(base.abs().amax(1).mean()) / 127
    assert merged_share(float(update.square().mean().sqrt()) / step) == pytest.approx(merged, abs=0.04)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.15, 30), st.integers(0, 100))
def test_the_closed_form_is_what_a_fixed_grid_keeps(ratio: float, seed: int) -> None:
    update = torch.randn(400_000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * ratio
    grid = torch.randint(-100, 100, update.shape, generator=torch.Generator().manual_seed(seed + 1)).double()
    left = rounding_share(grid, (grid + update).round(), update)
    assert float(left) == pytest.approx(merged_share(ratio), abs=0.02)


@given(st.floats(1e-3, 50), st.floats(1.01, 3))
def test_more_of_a_larger_update_survives(ratio: float, factor: float) -> None:
    assert 0 <= merged_share(ratio) <= 1.01
    if ratio * factor < 0.5:  # above that it is 1 within the ripple of the grid
        assert merged_share(ratio) <= merged_share(ratio * factor)
    assert merged_share(0.0) == 0.0
    assert math.isclose(merged_share(20.0), 1.0, abs_tol=1e-9)


def test_an_update_of_zeros_survives() -> None:
    weight = torch.ones(2, 2)
    assert float(rounding_share(weight, weight, torch.zeros(2, 2))) == 1.0
