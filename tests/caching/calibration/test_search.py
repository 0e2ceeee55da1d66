from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from stack.caching.candidate import WHOLE, Candidate
from stack.caching.noise_schedule import best_places
from stack.calibration.search import (
    DENSE,
    EARLY,
    GAINS,
    STRENGTHS,
    Scored,
    dense_end,
    neighbours,
    openings,
    search,
    spread,
)
from stack.models.schedule import uniform

STEPS = 30
ALL_GAINS = [WHOLE, *(gains for line in GAINS for gains in line)]


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
@given(st.sets(st.integers(2, STEPS - 2), min_size=3, max_size=5), st.sampled_from(ALL_GAINS))
def test_it_finds_a_reachable_optimum(places: set[int], gains: tuple[float, float]) -> None:
    goal = (0, *sorted(places))
    if min(b - a for a, b in pairwise(goal)) < 2:
        return
    found = search(Scored(score_towards(goal, gains), 2000), Candidate(spread(len(goal), STEPS, 1.0)), STEPS)
    assert found.score > -6
    assert found.best.gains == gains


def test_the_budget_is_kept_and_the_best_trial_is_returned() -> None:
    asked: list[Candidate] = []

    def score(candidate: Candidate) -> float:
        asked.append(candidate)
        return math.sin(sum(candidate.full_steps)) + candidate.gains[1]

    found = search(Scored(score, 15), Candidate(spread(6, STEPS, 1.0)), STEPS)
    assert len(asked) == len(set(asked)) == len(found.trials) == 15
    assert found.score == max(value for _, value in found.trials)


def test_a_line_is_left_where_it_stops_helping() -> None:
    start = Candidate((0, 5))
    scored = Scored(lambda c: {1.0: 0.0, 0.5: 1.0, 0.0: 0.5}[c.gains[1]], 10)
    scored.better(start)
    assert scored.follow(replace(start, gains=(1.0, g)) for g in (0.5, 0.0, 1.0))
    assert scored.found().best.gains == (1.0, 0.5) and len(scored.seen) == 3


def test_a_cache_that_is_its_forecast_keeps_it() -> None:
    start = Candidate(spread(4, STEPS, 1.0), gains=(0.0, 0.0), order=0)
    found = search(Scored(lambda c: float(sum(c.full_steps)), 500), start, STEPS, varied=False)
    assert {(c.gains, c.order) for c, _ in found.trials} == {((0.0, 0.0), 0)}
    assert found.score > sum(start.full_steps)


def test_no_trial_starts_when_the_time_is_over() -> None:
    left = iter([True] * 4 + [False] * 1000)
    found = search(Scored(lambda c: 0.0, 100, lambda: next(left)), Candidate(spread(6, STEPS, 1.0)), STEPS)
    assert 2 <= len(found.trials) <= 5


def test_the_best_family_is_opened() -> None:
    """One of each family, then the rest of the best one's; none where the start is better."""
    start = Candidate(spread(5, STEPS, 1.0))
    families = openings(replace(start, corrected=True), STEPS)

    def asked(score: Callable[[Candidate], float]) -> list[Candidate]:
        scored = Scored(score, 500)
        search(scored, start, STEPS, enough=lambda: True, varied=False, families=families)
        return list(scored.seen)

    firsts = [start, families[0][0], families[1][0]]
    assert asked(lambda c: float(c.corrected) * sum(c.full_steps)) == [*firsts, *families[0][1:]]
    early = asked(lambda c: -float(c.corrected) * sum(c.full_steps) + 1000 * c.corrected)
    assert early == [*firsts, *families[1][1:]]
    assert asked(lambda c: -float(c.corrected)) == firsts


def test_with_noise_levels_places_for_weaker_and_stronger_modes_come_first() -> None:
    """The stronger the strongest mode, the sooner the second full step; each schedule once."""
    levels = uniform(50, 3.0).levels
    placed, *others = openings(Candidate(spread(9, 50, 1.0), corrected=True), 50, levels=levels)
    assert [c.full_steps for c in placed] == [best_places(9, levels, strongest=v) for v in STRENGTHS]
    by_strength = [full for _, full in sorted(zip(STRENGTHS, (c.full_steps for c in placed), strict=True))]
    assert [full[1] for full in by_strength] == sorted({full[1] for full in by_strength}, reverse=True)
    assert [len(family) for family in others] == [len(DENSE), len(EARLY)]


def test_openings_are_of_one_size_and_lean_to_either_end() -> None:
    dense, early = openings(Candidate(spread(6, 50, 1.0), corrected=True), 50)
    assert [c.full_steps for c in dense] == [dense_end(6, 50, power) for power in DENSE]
    assert [c.full_steps for c in early] == [spread(6, 50, power) for power in EARLY]
    assert all(len(c.full_steps) == 6 and c.corrected for c in (*dense, *early))
    assert min(sum(c.full_steps) for c in dense) > sum(spread(6, 50, 1.0)) > max(sum(c.full_steps) for c in early)


def test_correction_is_tried_on_the_best_where_it_can_be() -> None:
    start = Candidate(spread(5, STEPS, 1.0))
    for correctable in (False, True):
        scored = Scored(lambda c: float(c.corrected), 30)
        found = search(scored, start, STEPS, families=[[start]], correctable=correctable)
        assert found.best.corrected is correctable
