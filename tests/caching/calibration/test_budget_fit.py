"""The scale of an error budget's estimate: looked for where the worst prompt is just within what is allowed."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from stack.calibrate.budget_fit import ENOUGH, ROUNDS, on_the_edge


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
