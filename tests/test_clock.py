from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.models.schedule import uniform
from stack.runtime.step_clock import Clock

from .clocks import advance, clock_of

SHAPE = (1, 64, 12)


@given(st.integers(2, 60), st.floats(0.3, 12))
def test_unshifted_time_is_uniform_in_the_step(steps: int, shift: float) -> None:
    table = uniform(steps, shift)
    for step, sigma in enumerate(table.sigmas):
        assert table.time(sigma) == pytest.approx(1 - step / steps, abs=1e-9)
        assert table.times[step] == pytest.approx(table.time(sigma), abs=1e-12)


def clock(steps: int = 10) -> Clock:
    return clock_of(uniform(steps, 3.0))


def test_a_full_schedule_is_one_request() -> None:
    c = clock()
    ticks = [advance(c, s, SHAPE) for s in c.timetable.schedule.sigmas]
    assert [t.step for t in ticks] == list(range(10))
    assert {t.request for t in ticks} == {1}
    assert ticks[0].is_first and ticks[-1].is_last and not ticks[4].is_last


@given(st.integers(0, 9), st.integers(0, 9))
def test_only_the_next_step_continues(last: int, following: int) -> None:
    c = clock()
    for s in c.timetable.schedule.sigmas[: last + 1]:
        request = advance(c, s, SHAPE).request
    after = advance(c, c.timetable.schedule.sigmas[following], SHAPE)
    assert (after.request == request) is (following == last + 1)


def test_another_resolution_and_a_restart_begin_a_request() -> None:
    c = clock()
    s = c.timetable.schedule.sigmas
    first = advance(c, s[0], SHAPE)
    assert advance(c, s[1], (1, 256, 12)).request == first.request + 1
    c.restart()
    assert advance(c, s[2], (1, 256, 12)).request == first.request + 2


def test_branches_share_a_request_by_name() -> None:
    c = clock()
    seen = []
    for s in c.timetable.schedule.sigmas[:3]:
        for branch in ("cond", "uncond"):
            c.branch = branch
            seen.append(advance(c, s, SHAPE))
    assert {t.request for t in seen} == {1}
    assert [t.branch for t in seen] == ["cond", "uncond"] * 3


def test_a_branch_may_be_left_out_without_harm() -> None:
    c = clock()
    s = c.timetable.schedule.sigmas
    c.branch = "cond"
    advance(c, s[0], SHAPE)
    advance(c, s[1], SHAPE)
    c.branch = "uncond"
    assert advance(c, s[1], SHAPE).request == 1
