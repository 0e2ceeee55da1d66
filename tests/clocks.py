"""A clock that is told noise levels, as a bare flow's loop goes through them."""

from __future__ import annotations

from stack.models.schedule import SigmaSchedule, of_flow
from stack.runtime.step import CallPlace, ComputeModes, StepContext
from stack.runtime.step_clock import Clock


def clock_of(schedule: SigmaSchedule) -> Clock:
    """A clock on this schedule."""
    return Clock(of_flow(schedule))


def advance(clock: Clock, sigma: float, shape: tuple[int, ...], compute_modes: ComputeModes = ()) -> StepContext:
    """A call at one of the schedule's noise levels begins."""
    place = CallPlace(clock.timetable, clock.timetable.timesteps.index(sigma))
    return clock.advance(place, shape, compute_modes=compute_modes)
