from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.caching.schedules import Aligned, Count, Interval, Mask, dense_end, same_share
from stack.core.errors import StackError


@pytest.mark.parametrize(
    ("warmup", "interval", "full"),
    [(3, 3, 18), (3, 4, 14), (3, 5, 12), (3, 6, 10), (3, 7, 9), (3, 8, 8), (3, 9, 8), (1, 5, 10), (1, 6, 9), (1, 7, 8)],
)
def test_published_full_step_counts_of_50(warmup: int, interval: int, full: int) -> None:
    assert len(Interval(interval, warmup).full_steps(50)) == full


def test_the_published_pattern_of_interval_5() -> None:
    full = Interval(5, 3).full_steps(50)
    drawn = "".join("F" if step in full else "." for step in range(50))
    assert drawn == "FFF....F....F....F....F....F....F....F....F....F.."


@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 80))
def test_an_interval_never_leaves_more_than_interval_minus_one_cached(interval: int, warmup: int, steps: int) -> None:
    full = Interval(interval, warmup).full_steps(steps)
    assert 0 in full and max(full) < steps
    ends = [*sorted(full), steps]
    assert all(b - a <= interval for a, b in pairwise(ends))


@given(st.integers(1, 60), st.integers(1, 80))
def test_a_count_is_spread_evenly(count: int, steps: int) -> None:
    full = sorted(Count(count).full_steps(steps))
    assert full[0] == 0 and len(full) == min(count, steps)
    gaps = {b - a for a, b in pairwise([*full, steps])}
    assert max(gaps) - min(gaps) <= 1


def test_dense_end_is_even_at_power_1_and_dense_near_the_data_above() -> None:
    assert dense_end(5, 50, 1.0) == (0, 10, 20, 30, 40)
    gaps = [b - a for a, b in pairwise(dense_end(8, 50, 2.0))]
    assert gaps == sorted(gaps, reverse=True)


def test_a_mask_serves_only_its_own_number_of_steps() -> None:
    mask = Mask((0, 4, 9), 12)
    assert mask.full_steps(12) == {0, 4, 9}
    with pytest.raises(StackError, match="calibrated for 12 steps, got 20"):
        mask.full_steps(20)


@pytest.mark.parametrize("full", [(1, 4), (0, 12), (0, -1), ()])
def test_impossible_masks_are_refused(full: tuple[int, ...]) -> None:
    with pytest.raises(StackError, match=r"0\.\.11"):
        Mask(full, 12)


@given(st.integers(2, 12), st.integers(24, 100))
def test_the_fallback_keeps_the_share_of_full_steps(count: int, steps: int) -> None:
    mask = Mask(tuple(range(count)), 50)
    share = len(same_share(mask, steps).full_steps(steps)) / steps
    assert share == pytest.approx(count / 50, abs=0.12)


def test_an_aligned_schedule_is_full_at_both_switches() -> None:
    full = Aligned(Interval(5, 3), (0.1, 0.98)).full_steps(50)
    drawn = "".join("F" if step in full else "." for step in range(50))
    assert drawn == "FFF..F.....F....F....F.....F.....F....F....F.....F"


@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 80), st.lists(st.floats(0, 1), max_size=4))
def test_aligning_keeps_the_count_and_the_warm_up(interval: int, warmup: int, steps: int, shares: list[float]) -> None:
    even = Interval(interval, warmup)
    before, after = even.full_steps(steps), Aligned(even, tuple(shares)).full_steps(steps)
    assert len(after) == len(before) and 0 in after and max(after) < steps
    assert set(range(min(warmup, steps))) <= after
    at = {round(share * steps) for share in shares} - {steps}
    assert at <= after or after == before
    if at <= after:  # what is left is spread as evenly as it can be: no gap could be cut by a step of a smaller one
        gaps = [b - a for a, b in pairwise([*sorted(after), steps])]
        fixed = at | set(range(min(warmup, steps)))
        loose = [b - a for a, b in pairwise([*sorted(after), steps]) if a not in fixed or b not in {*fixed, steps}]
        assert not loose or max(gaps) <= 2 * min(loose) + 1
