from __future__ import annotations

import math

import pytest
from curves import at_speedup

CURVE = [(8.0, 30.0), (2.0, 50.0), (4.0, 40.0)]


@pytest.mark.parametrize(
    ("speedup", "expected"),
    [(4.0, 40.0), (math.sqrt(8), 45.0), (16.0, 30.0), (1.5, 50.0), (1.0, 99.0), (0.8, 99.0)],
    ids=["a point", "half way in log time", "beyond the fastest", "beyond the slowest", "the base", "slower than base"],
)
def test_a_control_at_a_rows_own_time(speedup: float, expected: float) -> None:
    assert at_speedup(CURVE, speedup) == pytest.approx(expected)


def test_the_best_of_two_points_at_one_speedup_counts() -> None:
    assert at_speedup([*CURVE, (4.0, 43.0), (4.0, 12.0)], 4.0) == 43.0
