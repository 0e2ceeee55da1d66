from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placement import Times, moved, place, shifted, warped

BEST = (1.0, 0.62, 0.3, 0.1)


def near(times: Times) -> float:
    return -sum((a - b) ** 2 for a, b in zip(times, BEST, strict=True))


def test_warped_times() -> None:
    assert warped(4, 1.0) == (1.0, 0.75, 0.5, 0.25)
    assert warped(4, 2.0) == (1.0, 0.5625, 0.25, 0.0625)
    assert shifted((1.0, 0.5), 3.0) == (1.0, 0.75)


def test_one_time_moves_towards_its_neighbour() -> None:
    assert list(moved((1.0, 0.5, 0.2), 0.5)) == [(1.0, 0.35, 0.2), (1.0, 0.5, 0.1)]
    assert list(moved((1.0, 0.5, 0.2), -0.5)) == [(1.0, 0.75, 0.2), (1.0, 0.5, 0.35)]


def test_the_search_finds_times_off_every_law() -> None:
    found = place(near, 4, 200)
    assert found.score > -1e-3
    assert found.score > 10 * max(near(warped(4, p)) for p in (1.0, 1.25, 1.5))  # scores are negative


@settings(deadline=None)
@given(st.integers(2, 12), st.integers(1, 40))
def test_trials_are_kept_and_uniform_is_the_floor(count: int, trials: int) -> None:
    asked: list[Times] = []

    def score(times: Times) -> float:
        asked.append(times)
        return -abs(times[-1] - 0.05)

    found = place(score, count, trials)
    assert len(asked) == len(set(asked)) == len(found.trials) <= trials
    assert asked[0] == warped(count, 1.0)
    assert found.score == max(value for _, value in found.trials) and dict(found.trials)[found.best] == found.score
    for times in asked:
        assert times[0] == 1.0 and all(a > b > 0 for a, b in pairwise(times))


def test_all_trials_are_told() -> None:
    told: list[float] = []
    place(near, 4, 9, lambda times, value: told.append(value))
    assert len(told) == 9 and told[0] == pytest.approx(near(warped(4, 1.0)))
