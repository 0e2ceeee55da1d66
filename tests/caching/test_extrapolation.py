"""How far forecasts may go from the last feature, by hand, and that they never go further."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.caching.forecast import BASES, Forecast
from stack.caching.guard import ExtrapolationGuard
from stack.caching.measurements import Measurements
from stack.caching.predictor import Predictor
from stack.caching.splits import ChannelBasis

WHOLE = (1.0, 1.0)


def predictor_of(forecast: Forecast, steps: list[tuple[float, torch.Tensor]]) -> Predictor:
    predictor = Predictor(forecast, ChannelBasis(0.8))
    for x, value in steps:
        predictor.update(value, x)
    return predictor


def known(*predictors: Predictor) -> ExtrapolationGuard:
    """A guard that has read the norms of these."""
    guard, norms = ExtrapolationGuard(), Measurements()
    for predictor in predictors:
        guard.note(predictor.norms, predictor)
    guard.send(norms)
    norms.poll()
    return guard


def line(first: float, second: float) -> Predictor:
    """Full steps at 1.0 and 0.9, one number each."""
    values = [torch.full((1, 1, 1), value) for value in (first, second)]
    return predictor_of(Forecast(1, WHOLE), list(zip((1.0, 0.9), values, strict=True)))


def test_a_line_goes_its_slope_times_the_distance_over_its_last_value() -> None:
    guard = known(line(3.0, 2.0))  # slope 10: from 2 at 0.9 to -1 at 0.6
    assert guard.at(0.9) == 0.0
    assert guard.at(0.6) == pytest.approx(3 / 2, rel=1e-5)


def test_features_of_one_step_count_together() -> None:
    """Norms 4 and 3 make 5; they move by 2 and by 1.5 per unit of norm: sqrt(2^2 + 1.5^2) / 5."""
    guard = known(line(6.0, 4.0), line(4.5, 3.0))
    assert guard.at(0.8) == pytest.approx(math.hypot(2, 1.5) / 5, rel=1e-5)


def test_the_farthest_of_unlike_steps_counts() -> None:
    one, other = line(3.0, 2.0), predictor_of(Forecast(1, WHOLE), [(0.8, torch.ones(1, 1, 1))])
    assert known(one, other).at(0.6) == known(one).at(0.6)
    assert known(other).at(0.1) == 0.0, "reuse goes nowhere"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_norms_that_are_no_numbers_are_noticed_until_the_state_is_cleared(number: float) -> None:
    guard, norms = ExtrapolationGuard(), Measurements()
    guard.note(torch.tensor([1.0, number]))
    guard.send(norms)
    norms.poll()
    assert not guard.finite
    guard.clear()
    assert guard.finite and guard.at(0.5) == 0.0


def test_nothing_noted_nothing_known() -> None:
    guard, norms = ExtrapolationGuard(), Measurements()
    guard.send(norms)
    assert guard.finite and guard.at(0.0) == 0.0 and norms.noted == []


@settings(deadline=None, max_examples=60)
@given(
    order=st.integers(0, 3),
    basis=st.sampled_from(BASES),
    gains=st.sampled_from([WHOLE, (1.0, 0.0), (0.3, 1.5)]),
    gap=st.sampled_from([0.3, 0.02]),
    ahead=st.floats(0.001, 0.5),
    jump=st.sampled_from([0.01, 1.0, 100.0]),
    seed=st.integers(0, 999),
)
def test_no_forecast_goes_further_than_is_said(
    order: int, basis: str, gains: tuple[float, float], gap: float, ahead: float, jump: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    xs = [1 - gap * i for i in range(order + 1)]
    values = [torch.randn(1, 5, 4, generator=generator) * jump**i for i in range(order + 1)]
    predictor = predictor_of(Forecast(order, gains, basis), list(zip(xs, values, strict=True)))
    at = xs[-1] - ahead
    moved = float((predictor.predict(at) - values[-1]).norm() / values[-1].norm())
    assert moved <= known(predictor).at(at) * (1 + 1e-3) + 1e-4
