from __future__ import annotations

import math

import pytest
from curves import at_speedup, pareto_front
from hypothesis import given
from hypothesis import strategies as st

CURVE = [(8.0, 30.0), (2.0, 50.0), (4.0, 40.0)]
POINTS = st.lists(st.tuples(st.integers(1, 6).map(float), st.integers(20, 30).map(float)), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("speedup", "expected"),
    [(4.0, 40.0), (math.sqrt(8), 45.0), (16.0, 30.0), (1.5, 50.0), (1.0, 99.0), (0.8, 99.0)],
    ids=["a point", "half way in log time", "beyond the fastest", "beyond the slowest", "the base", "slower than base"],
)
def test_a_control_at_a_rows_own_time(speedup: float, expected: float) -> None:
    assert at_speedup(CURVE, speedup) == pytest.approx(expected)


def test_the_best_of_two_points_at_one_speedup_counts() -> None:
    assert at_speedup([*CURVE, (4.0, 43.0), (4.0, 12.0)], 4.0) == 43.0


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    front = pareto_front(points)
    for i, (speed, value) in enumerate(points):
        beaten = any(s >= speed and v >= value and (s, v) != (speed, value) for s, v in points)
        assert (points[i] in [points[j] for j in front]) == (not beaten)
    assert len({points[j] for j in front}) == len(front)
    assert [points[j][0] for j in front] == sorted(points[j][0] for j in front)
