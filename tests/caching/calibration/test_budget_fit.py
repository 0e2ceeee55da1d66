"""The scale of an error budget's estimate: looked for where the worst prompt is just within what is allowed."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.calibration.budget_fit import ENOUGH, MARGIN, ROUNDS, error_to_come, on_the_edge


@given(st.floats(1e-3, 1e3), st.floats(0.3, 1.5))
def test_a_power_law_is_met_from_below(edge: float, power: float) -> None:
    asked: list[float] = []

    def worst_at(scale: float) -> float:
        asked.append(scale)
        return (edge / scale) ** power

    found = on_the_edge(worst_at, rounds=12)
    assert ENOUGH <= found.worst <= 1
    assert found.scale in asked and len(asked) <= 12


def test_jumps_leave_the_best_that_keeps_within() -> None:
    found = on_the_edge(lambda scale: 2.0 if scale < 3 else 0.4)
    assert found.worst == 0.4 and 3 <= found.scale < 3.5


def test_where_nothing_keeps_within_the_nearest_is_told() -> None:
    found = on_the_edge(lambda scale: 5.0)
    assert found.worst == 5.0
    silent = on_the_edge(lambda scale: 0.0)
    assert silent.worst == 0 and math.isclose(min(1.0, silent.scale), silent.scale)


def test_no_more_rounds_than_it_has() -> None:
    asked: list[float] = []
    on_the_edge(lambda scale: asked.append(scale) or 7.0)
    assert len(asked) == ROUNDS


def test_nineteen_of_twenty_further_errors_stay_below_the_limit() -> None:
    numbers, kept = random.Random(3), 0
    for _ in range(4000):
        *errors, further = (math.exp(numbers.gauss(-3, 0.6)) for _ in range(6))
        kept += further <= error_to_come(errors)
    assert 0.94 <= kept / 4000 <= 0.975  # at least the margin over the worst, so a little above


def test_errors_all_alike_have_the_margin_alone() -> None:
    assert error_to_come([0.02] * 5) == pytest.approx(MARGIN * 0.02)
    assert error_to_come([0.01, 0.02]) == pytest.approx(MARGIN * 0.02) and error_to_come([0.0, 0.0, 0.0]) == 0
