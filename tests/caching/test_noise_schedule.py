"""The full steps that are best for Gaussian data."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.caching.noise_schedule import (
    FEW,
    MANY,
    MODES,
    STRONGEST,
    STRONGEST_OF_FEW,
    WEAKEST,
    ByNoise,
    GapCosts,
    best_places,
    flow_levels,
    least_error,
    strongest_of,
)
from stack.caching.schedules import Count
from stack.models.schedule import SigmaSchedule, uniform

FLOW = uniform(50, 3.0).levels


def cosine(steps: int) -> tuple[tuple[float, float], ...]:
    """A DDIM ladder on a cosine schedule, from almost pure noise."""
    angles = [(i + 0.02) / steps * math.pi / 2 for i in range(steps)]
    return tuple((1 - i / steps, math.log(math.tan(angle))) for i, angle in enumerate(angles))


def test_it_is_dense_near_the_data_on_a_flow_and_at_the_start_on_a_cosine_schedule() -> None:
    assert best_places(9, FLOW) == (0, 8, 16, 24, 32, 39, 44, 47, 49)
    assert best_places(6, FLOW) == (0, 21, 35, 43, 47, 49)
    assert best_places(9, cosine(50))[:5] == (0, 2, 5, 9, 16)


def test_few_steps_keep_the_first_and_the_last_in_full() -> None:
    """Of the noise levels of an adapter of 8 steps and of one of 4."""
    eight = (1.0, 0.956579, 0.904881, 0.830553, 0.75026, 0.648044, 0.486833, 0.290609)
    levels, four = SigmaSchedule(eight).levels, SigmaSchedule((1.0, 0.904881, 0.75026, 0.486833)).levels
    assert best_places(5, levels) == (0, 3, 5, 6, 7)
    assert best_places(4, levels) == (0, 4, 6, 7)
    assert best_places(3, levels) == (0, 5, 7)
    assert best_places(3, four) == (0, 2, 3)


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("levels", [uniform(9, 3.0).levels, cosine(9), uniform(8).levels])
def test_no_other_choice_costs_less(levels: tuple[tuple[float, float], ...], order: int, corrected: bool) -> None:
    steps = len(levels)

    def cost(places: tuple[int, ...]) -> float:
        table, ends = tables[len(places)], [-1, *places, steps]
        return sum(table[a + 1, b, c] for a, b, c in zip(ends, ends[1:], ends[2:], strict=False))

    tables = {n: GapCosts(levels, order, corrected, strongest_of(n)).table(()) for n in range(1, steps)}
    for count in range(1, steps):
        every = [(0, *rest) for rest in combinations(range(1, steps), count - 1)]
        assert cost(best_places(count, levels, order, corrected)) == pytest.approx(min(map(cost, every)))


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize(("at", "to"), [(10, 16), (30, 37), (40, 45), (44, 50)])
@pytest.mark.parametrize("levels", [FLOW, cosine(50)])
def test_the_cost_of_a_gap_is_what_it_leaves_in_gaussian_data(
    levels: tuple[tuple[float, float], ...], at: int, to: int, order: int
) -> None:
    """One gap of an otherwise full run of the sampler on the modes themselves, with no corrector."""
    cost = GapCosts(levels, order, corrected=False)
    signal = 1 / np.sqrt(1 + np.exp(-2 * np.array([level for _, level in levels])))
    signal, noise = np.append(signal, 1.0), np.append(np.sqrt(1 - signal**2), 0.0)
    v, times = np.exp(np.linspace(WEAKEST, STRONGEST, MODES)), [time for time, _ in levels]

    def run(cached: range) -> np.ndarray:
        x, seen = np.ones(MODES), {}
        for step in range(50):
            seen[step] = signal[step] * v / (signal[step] ** 2 * v + noise[step] ** 2) * x
            x0 = seen[step]
            if step in cached:
                x0 = seen[at] + order * (times[step] - times[at]) * (seen[at] - seen[at - 4]) / (
                    times[at] - times[at - 4]
                )
            kept = noise[step + 1] / noise[step]
            x = kept * x + (signal[step + 1] - signal[step] * kept) * x0
        return x

    plain = run(range(0))
    left = np.sqrt(np.mean((run(range(at + 1, to)) / plain - 1) ** 2))
    assert left == pytest.approx(math.sqrt(cost.table(())[at - 4 + 1, at, to]), rel=0.25)


def test_only_the_ratio_of_signal_to_noise_counts() -> None:
    """A variance-preserving sampler and one of EDM's sigmas at the same ratios have the same places."""
    sigmas = np.geomspace(80, 0.01, 30)
    edm = tuple((1 - i / 30, -math.log(s)) for i, s in enumerate(sigmas))
    kept = 1 / (1 + sigmas**2)
    preserving = tuple((1 - i / 30, 0.5 * math.log(k / (1 - k))) for i, k in enumerate(kept))
    assert best_places(8, edm) == best_places(8, preserving)


def test_the_strongest_modes_count_where_full_steps_are_many() -> None:
    """They are decided within the first few steps: a picture's layout."""
    assert [strongest_of(n) for n in (1, FEW, 9, MANY, 40)] == [STRONGEST_OF_FEW] * 2 + [4.5] + [STRONGEST] * 2
    for levels in (FLOW, cosine(50)):
        early = [best_places(12, levels, strongest=v)[1:4] for v in (STRONGEST_OF_FEW, 3.5, STRONGEST)]
        assert early == sorted(early, reverse=True) and len(set(early)) == 3
        assert best_places(12, levels) == best_places(12, levels, strongest=STRONGEST)
        assert best_places(6, levels) == best_places(6, levels, strongest=STRONGEST_OF_FEW)


@pytest.mark.parametrize("levels", [FLOW, cosine(50)])
def test_more_full_steps_leave_less(levels: tuple[tuple[float, float], ...]) -> None:
    errors = [least_error(count, levels, 1, corrected=True) for count in (12, 16, 20, 25, 50)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 3 * errors[2] and errors[-1] == 0


@given(
    st.lists(st.floats(0.01, 3.0), min_size=2, max_size=40),
    st.floats(-10, 0),
    st.integers(1, 45),
    st.booleans(),
    st.sets(st.integers(1, 39), max_size=2),
)
def test_any_ladder_gets_as_many_places_as_asked_for(
    gaps: list[float], first: float, count: int, corrected: bool, fixed: set[int]
) -> None:
    steps = len(gaps)
    levels = tuple((1 - i / steps, first + level) for i, level in enumerate(np.cumsum(gaps).tolist()))
    inside = frozenset(at for at in fixed if at < steps)
    count = max(count, 1 + len(inside))
    places = best_places(count, levels, 1, corrected, inside)
    assert places[0] == 0 and sorted(set(places)) == list(places) and len(places) == min(count, steps)
    assert inside <= set(places) and max(places) < steps


def test_a_ladder_of_a_thousand_steps_has_its_places_at_the_same_noise_levels() -> None:
    few, many = best_places(20, flow_levels(100)), best_places(20, flow_levels(1000))
    assert len(many) == 20 and max(abs(10 * a - b) for a, b in zip(few, many, strict=True)) <= 30


def test_both_calls_at_a_noise_level_are_full() -> None:
    """Heun's: every level but the first is looked at twice."""
    levels = tuple(level for i, level in enumerate(uniform(10, 3.0).levels) for _ in range(1 if i == 0 else 2))
    full = ByNoise(Count(6), levels).full_steps(len(levels))
    assert full == {0, 11, 12, 17, 18}


def test_a_switch_is_full_and_the_count_stays() -> None:
    full = ByNoise(Count(9), FLOW, switches=(0.1, 0.9)).full_steps(50)
    assert {0, 5, 45} <= full and len(full) == 9
