from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from stack.caching.search import GAINS, Candidate, neighbours, search, spread

STEPS = 30


def score_towards(goal: tuple[int, ...], gains: tuple[float, float]) -> Callable[[Candidate], float]:
    def score(candidate: Candidate) -> float:
        distance = sum(abs(a - b) for a, b in zip(candidate.full_steps, goal, strict=True))
        return -distance - 5 * abs(candidate.gains[0] - gains[0]) - 5 * abs(candidate.gains[1] - gains[1])

    return score


@given(st.integers(2, 20), st.sampled_from([0.85, 1.0, 1.2, 1.6]))
def test_a_spread_has_the_right_number_of_distinct_steps(count: int, power: float) -> None:
    full = spread(count, STEPS, power)
    assert full[0] == 0 and list(full) == sorted(set(full)) and max(full) < STEPS
    assert len(full) == count


def test_a_power_above_one_leans_to_the_start() -> None:
    assert sum(spread(8, 50, 1.5)) < sum(spread(8, 50, 1.0)) < sum(spread(8, 50, 0.85))


@given(st.sets(st.integers(1, STEPS - 1), min_size=1, max_size=10))
def test_neighbours_keep_step_0_and_the_count(places: set[int]) -> None:
    full = (0, *sorted(places))
    for other in neighbours(full, STEPS):
        assert other[0] == 0 and len(set(other)) == len(full) and max(other) < STEPS
        assert len(set(other) ^ set(full)) == 2


@settings(deadline=None, max_examples=20)
@given(st.sets(st.integers(2, STEPS - 2), min_size=3, max_size=5), st.sampled_from(GAINS))
def test_it_finds_a_reachable_optimum(places: set[int], gains: tuple[float, float]) -> None:
    goal = (0, *sorted(places))
    if min(b - a for a, b in pairwise(goal)) < 2:
        return
    found = search(score_towards(goal, gains), len(goal), STEPS, 2000)
    assert found.score > -6
    assert found.best.gains == gains


def test_the_budget_is_kept_and_the_best_trial_is_returned() -> None:
    asked: list[Candidate] = []

    def score(candidate: Candidate) -> float:
        asked.append(candidate)
        return math.sin(sum(candidate.full_steps)) + candidate.gains[1]

    found = search(score, 6, STEPS, 40)
    assert len(asked) == len(set(asked)) == len(found.trials) <= 40
    assert found.score == max(value for _, value in found.trials)
