"""Full steps by what is measured: the estimate is near the true error, and what is allowed is kept and used."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stack.caching.noise_schedule import best_places, flow_levels
from stack.caching.outlook import outlook, planned_levels
from stack.caching.spending import PRIOR, Spending

from .gaussian import Toy, error, spending

SCALE = 3.0  # errors of gaps point the same way on Gaussian data: what `fit_gate` finds where that is so


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    low=st.floats(-3.5, -1.5),
    high=st.floats(1.0, 3.0),
    allowed=st.floats(0.005, 0.1),
)
@example(seed=0, low=-1.5, high=1.0, allowed=0.03515625)
@example(seed=77000, low=-3.5, high=1.0, allowed=0.005859375)
def test_gaussian_data_stays_within_what_is_allowed(seed: int, low: float, high: float, allowed: float) -> None:
    toy, spent = Toy(seed, (low, high)), spending(SCALE * allowed)
    made = error(toy, spent)
    # Of 4,391 draws 15 were above 3.6, the largest 3.75.
    assert made <= 4 * spent.estimate and spent.estimate <= 1.05 * SCALE * allowed
    scaled = spending(allowed)
    scaled.scale = SCALE
    assert error(toy, scaled) <= 1.1 * allowed
    # The last gap may have been harder than those before it: of the same draws 32 were above 1.05, the largest 1.36.
    assert 0 < scaled.estimate <= 1.4 * allowed
    assert len(toy.full) < 35


def test_most_of_it_is_used_and_more_of_it_buys_fewer_steps() -> None:
    full = []
    for allowed in (0.005, 0.02, 0.08):
        toy, spent = Toy(3), spending(allowed)
        assert error(toy, spent) > 0.2 * allowed
        full.append(len(toy.full))
    assert full == sorted(full, reverse=True) and full[0] > full[1] > full[2] >= 5


def test_it_needs_hardly_more_full_steps_than_the_best_fixed_schedule() -> None:
    """Known in advance to be Gaussian, it begins with what the rule would do."""
    levels, _ = planned_levels(flow_levels(50))
    for allowed in (0.01, 0.05):
        toy, spent = Toy(5), spending(allowed)
        spent.hardness = 1.0
        made = error(toy, spent)
        fixed = next(n for n in range(2, 50) if _fixed_error(Toy(5), best_places(n, levels)) <= made)
        assert len(toy.full) <= 1.2 * fixed + 1


def _fixed_error(toy: Toy, full: tuple[int, ...]) -> float:
    spent = spending(1.0)
    spent.due = lambda step: step in full  # type: ignore[method-assign]
    return error(toy, spent)


def test_early_errors_buy_early_full_steps() -> None:
    early = {}
    for bumps in (0.0, 0.02, 0.1):
        toy = Toy(3, bumps=bumps)
        error(toy, spending(0.02))
        early[bumps] = sum(step < 13 for step in toy.full)
    assert early[0.0] + 2 <= early[0.02] < early[0.1]


def test_a_larger_error_is_believed_at_once_and_a_smaller_one_by_half() -> None:
    spent = spending(0.05)
    assert spent.due(0)
    spent.ran(0)(math.nan, 1.0)
    takes = spent.ran(6)
    expected = spent.ahead.measured[0, 0, 6]
    assert spent.spent == pytest.approx(PRIOR * spent.ahead.left[0, 0, 6])
    takes(math.sqrt(4 * PRIOR * expected), 1.0)
    assert spent.hardness == pytest.approx(4 * PRIOR)
    assert spent.spent == pytest.approx(4 * PRIOR * spent.ahead.left[0, 0, 6])
    takes = spent.ran(9)
    takes(math.sqrt(PRIOR * spent.ahead.measured[1, 6, 9]), 1.0)
    assert spent.hardness == pytest.approx(2 * PRIOR)  # half way, by its logarithm
    assert spent.spent == pytest.approx(PRIOR * (4 * spent.ahead.left[0, 0, 6] + spent.ahead.left[1, 6, 9]))


def test_what_was_measured_counts_for_the_size_that_is_known_last() -> None:
    spent = spending(0.05)
    spent.ran(0)(math.nan, 0.5)
    assert spent.hardness == PRIOR and spent.size == 0.5
    before = spent.spent = 1e-4
    spent.ran(1)(math.nan, 1.0)
    assert spent.spent == pytest.approx(before / 4) and spent.hardness == pytest.approx(PRIOR / 4)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_are_not_finite_say_nothing(number: float) -> None:
    spent, other = spending(0.05), spending(0.05)
    for each, (error_of, size) in ((spent, (number, number)), (other, (math.nan, math.nan))):
        each.ran(0)(math.nan, 1.0)
        each.ran(6)(error_of, size)
    assert vars(spent) == vars(other) and math.isfinite(spent.estimate)


def test_an_error_that_comes_late_changes_the_next_full_step() -> None:
    spent = spending(0.02)
    spent.ran(0)(math.nan, 1.0)
    takes = spent.ran(6)
    waiting = next(step for step in range(7, 50) if spent.due(step))
    takes(20.0, 1.0)
    assert spent.due(7) and waiting > 7


def test_dropped_state_makes_the_next_step_full_and_is_no_gap() -> None:
    spent = spending(0.05)
    spent.ran(0)(math.nan, 1.0)
    booked = spent.spent
    spent.forget()
    assert spent.due(4)
    spent.ran(4)(0.5, 1.0)
    assert spent.spent == booked and (spent.before, spent.at) == (-1, 4)


def test_ways_ahead_cost_what_their_gaps_do() -> None:
    levels, _ = planned_levels(flow_levels(20))
    ahead = outlook(levels, 1, True)
    before, at, total = -1, 0, 0.0
    for more in range(5, -1, -1):
        to = ahead.next_full(before, at, more)
        total += ahead.left[before + 1, at, to]
        before, at = at, to
    assert at == 20 and total == pytest.approx(ahead.to_go[5, 0, 0])
    assert (ahead.to_go[1:, 0, 0][:18] <= ahead.to_go[:-1, 0, 0][:18]).all()


def test_long_ladders_are_thinned_and_second_looks_follow_the_first() -> None:
    levels, places = planned_levels(flow_levels(300))
    assert len(levels) == 100 and places[:4] == (0, -1, -1, 1)
    twice = tuple(level for level in flow_levels(10) for _ in range(2))
    levels, places = planned_levels(twice)
    spent = Spending(0.5, outlook(levels, 1, True), places)
    dues = []
    for step in range(20):
        dues.append(spent.due(step))
        if dues[-1]:
            spent.ran(step)
    assert dues[::2] == dues[1::2] and 2 <= sum(dues[::2]) < 10
