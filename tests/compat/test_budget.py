"""What is spent stays within what is allowed, and most of it is spent."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.caching.gates import BudgetGate
from stack.compat.budget import ErrorBudget, weights_of
from stack.models.schedule import uniform


def walk(
    allowed: float, order: int, rate: float, steps: int = 50, shift: float = 3.0
) -> tuple[ErrorBudget, list[bool]]:
    """A run in which forecasts are off by exactly `rate` times the gap to the power order + 1."""
    sigmas = uniform(steps, shift).sigmas
    xs = [1 - i / steps for i in range(steps)]
    budget = ErrorBudget(allowed, xs, weights_of(sigmas), order)
    gate, full, skips, seen = BudgetGate(budget, warmup=order + 2), 0, [], 0
    for step in range(steps):
        skips.append(gate.skip(step, steps, None, 0))
        if not skips[-1]:
            error = rate * abs(xs[step] - xs[full]) ** (order + 1) if seen > order else None
            budget.ran(step, error)
            full, seen = step, seen + 1
    return budget, skips


@settings(deadline=None, max_examples=60)
@given(allowed=st.floats(1e-4, 0.3), order=st.integers(0, 2), rate=st.floats(0.1, 50), steps=st.integers(12, 80))
def test_never_more_than_is_allowed(allowed: float, order: int, rate: float, steps: int) -> None:
    budget, skips = walk(allowed, order, rate, steps)
    assert budget.spent <= allowed * (1 + 1e-9)
    assert not any(skips[: order + 2])
    xs, weights = budget.xs, budget.weights
    full, owed = 0, 0.0
    for step, skip in enumerate(skips):
        full = full if skip else step
        owed += weights[step] * rate * abs(xs[step] - xs[full]) ** (order + 1)
    assert owed == pytest.approx(budget.spent, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("allowed", "rate"), [(0.01, 5.0), (0.02, 20.0), (0.05, 30.0)])
def test_at_least_half_of_it_is_spent_where_it_buys_something(allowed: float, rate: float) -> None:
    budget, skips = walk(allowed, 1, rate)
    assert budget.spent > 0.5 * allowed
    assert 0.2 < sum(skips) / len(skips) < 0.95


def test_twice_the_error_buys_more_steps() -> None:
    saved = [sum(walk(allowed, 1, 20.0)[1]) for allowed in (0.002, 0.01, 0.05)]
    assert saved == sorted(saved) and saved[0] < saved[-1]


def test_nothing_is_cached_before_a_forecast_has_been_checked() -> None:
    budget = ErrorBudget(1.0, [1.0, 0.5, 0.0], [0.5, 0.3, 0.2], 1)
    assert not budget.affords(1)
    budget.ran(1, 0.1)
    assert budget.rate == pytest.approx(0.1 / 0.5**2)


def test_a_forecast_that_failed_is_booked_and_believed() -> None:
    """A run booked at rate 1 whose end shows rate 4 costs four times as much."""
    budget = ErrorBudget(1.0, [1.0, 0.9, 0.8, 0.7], [0.25] * 4, 0, rate=1.0)
    budget.skipped(1)
    booked = budget.spent
    budget.ran(2, 4 * 0.2)
    assert budget.spent == pytest.approx(4 * booked)
    assert budget.rate == pytest.approx(4.0)
    budget.ran(3, 0.1 * 2.0)
    assert budget.rate == pytest.approx(3.0)  # a better one is believed by half


def test_the_scale_is_on_every_cost() -> None:
    plain, scaled = (ErrorBudget(1.0, [1.0, 0.5], [0.5, 0.5], 1, scale, rate=2.0) for scale in (1.0, 3.0))
    assert scaled.cost(1) == pytest.approx(3 * plain.cost(1)) and math.isclose(plain.cost(1), 0.5 * 2 * 0.25)


def test_weights_are_shares_of_the_noise_level() -> None:
    weights = weights_of([1.0, 0.7, 0.1])
    assert weights == pytest.approx([0.3, 0.6, 0.1]) and sum(weights) == pytest.approx(1)


def test_the_same_error_weighs_more_on_a_small_sample() -> None:
    spent, skips = {}, {}
    for size in (1.0, 0.2):
        sigmas = uniform(40).sigmas
        budget = ErrorBudget(0.02, list(sigmas), weights_of(sigmas), 1)
        budget.resize(size)
        gate, full, skips[size] = BudgetGate(budget, warmup=3), 0, 0
        for step in range(40):
            if gate.skip(step, 40, None, 0):
                skips[size] += 1
            else:
                budget.ran(step, 20 * abs(sigmas[step] - sigmas[full]) ** 2 if step > 1 else None)
                full = step
        spent[size] = budget.spent
    assert skips[0.2] < skips[1.0] and max(spent.values()) <= 0.02 * (1 + 1e-9)


def test_what_was_spent_stays_and_what_comes_costs_by_the_new_size() -> None:
    budget = ErrorBudget(1.0, [1.0, 0.5, 0.0], [0.5, 0.3, 0.2], 0, rate=1.0, spent=0.1)
    before = budget.cost(1)
    budget.resize(0.5)
    assert budget.spent == 0.1 and budget.cost(1) == pytest.approx(2 * before)
    budget.resize(0.0)
    assert budget.size > 0 and math.isfinite(budget.cost(1))
