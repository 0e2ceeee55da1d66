"""The timetable of a request, read from a diffusers scheduler."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from ..core.errors import StackError

SHIFTS = (1e-3, 1e3)  # far beyond what models are used with
# What FLUX's pipelines take where a scheduler's configuration does not say.
DYNAMIC_SHIFT = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
TRAINED = 1000  # training steps of a scheduler whose configuration does not say
CLOSE = 1e-3  # relative: neighbours in schedules of 500 steps still differ by more
FLOW_MATCH = 1e-3  # of the training steps: a flow's timesteps are its noise levels to this, float32 rounding included


@dataclass(frozen=True)
class SigmaSchedule:
    """The noise levels of a request, largest first and without the final 0, and the shift they were made with.

    Attributes:
        begin: which step of the sampler's whole schedule the first one is: image to image starts in the middle.
        known: whether it is the sampler's; else it is a single call whose place on a schedule is not known.
    """

    sigmas: tuple[float, ...]
    shift: float = 1.0
    begin: int = 0
    known: bool = True

    @cached_property
    def times(self) -> tuple[float, ...]:
        """Unshifted time of each step; the share of steps still to come where levels are none between 0 and 1."""
        if any(not 0 <= sigma <= 1 for sigma in self.sigmas):
            return tuple(1 - i / len(self.sigmas) for i in range(len(self.sigmas)))
        return tuple(map(self.time, self.sigmas))

    def time(self, sigma: float) -> float:
        """Unshifted time u: sigma = s u / (1 + (s - 1) u), solved for u."""
        return sigma / (self.shift - (self.shift - 1) * sigma)

    def since(self, begin: int) -> SigmaSchedule:
        """What is left of it from this step on."""
        return self if not begin else replace(self, sigmas=self.sigmas[begin:], begin=self.begin + begin)


def check_shift(shift: float) -> None:
    """Refuse a shift that leaves no noise levels between 0 and 1.

    Raises:
        StackError: it is out of `SHIFTS`.
    """
    least, most = SHIFTS
    if not least <= shift <= most:
        raise StackError(f"shift: expected a number in [{least:g}, {most:g}], got {shift:g}; models have 1 to 17")


def uniform(steps: int, shift: float = 1.0) -> SigmaSchedule:
    """The schedule of a flow model with this shift: u = 1, 1 - 1/S, ..., 1/S.

    Raises:
        StackError: see `check_shift`.
    """
    check_shift(shift)
    times = (1 - i / steps for i in range(steps))
    return SigmaSchedule(tuple(shift * u / (1 + (shift - 1) * u) for u in times), shift)


def shift_of(config: Any, image_tokens: int) -> float:
    """The shift s of a flow-matching scheduler at this number of image tokens.

    With dynamic shifting FLUX computes mu, linear in the tokens, and s = exp(mu) (Esser et al. 2024, eq. 23).
    """
    if config.get("use_dynamic_shifting"):
        found = {name: config.get(name, usual) for name, usual in DYNAMIC_SHIFT.items()}
        low, slope = found["base_image_seq_len"], found["max_shift"] - found["base_shift"]
        mu = found["base_shift"] + slope * (image_tokens - low) / (found["max_image_seq_len"] - low)
        return math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else max(mu, 1e-3)
    return float(config.get("shift") or config.get("flow_shift") or 1.0)


@dataclass(frozen=True)
class Timetable:
    """A sampler's schedule, and the timesteps that it calls the denoiser with.

    Attributes:
        schedule: noise levels of the calls. Samplers with two calls a step have an entry for each.
        timesteps: over `TRAINED`, in the same order.
    """

    schedule: SigmaSchedule
    timesteps: tuple[float, ...]

    def nearest(self, timestep: float, precision: float) -> int | None:
        """The call with this timestep, given over `TRAINED` and to this relative precision; None where none has it."""
        at = min(range(len(self.timesteps)), key=lambda i: abs(self.timesteps[i] - timestep))
        return at if fits(self.timesteps[at], timestep, precision) else None


def fits(own: float, timestep: float, precision: float) -> bool:
    """Whether a timestep is the sampler's own, rounded."""
    return abs(own - timestep) <= max(precision, CLOSE) * max(abs(own), abs(timestep), CLOSE)


def timetable_of(scheduler: Any, image_tokens: int) -> Timetable:
    """The schedule that `scheduler.set_timesteps` has just made, kept on the host: read once per request.

    Noise levels are sigmas for a flow. For other samplers they are the timesteps as shares of the training's: sigmas
    have no common scale there (EDM's reach 157), the timesteps that the denoiser receives do.
    """
    timesteps = scheduler.timesteps.tolist()
    trained = scheduler.config.get("num_train_timesteps") or TRAINED
    made, levels = vars(scheduler).get("sigmas"), tuple(t / trained for t in timesteps)
    if made is not None and len(made) >= len(timesteps):
        sigmas = made.tolist()[: len(timesteps)]
        if all(abs(s - level) <= FLOW_MATCH for s, level in zip(sigmas, levels, strict=True)):
            levels = tuple(sigmas)
    return Timetable(_schedule(levels, scheduler, image_tokens), tuple(t / TRAINED for t in timesteps))


def _schedule(levels: tuple[float, ...], scheduler: Any, image_tokens: int) -> SigmaSchedule:
    schedule = SigmaSchedule(levels, shift_of(scheduler.config, image_tokens))
    falls = all(a >= b for a, b in pairwise(levels))
    # A level that rises again has no time of its own.
    return schedule if falls else SigmaSchedule(tuple(1 - i / len(levels) for i in range(len(levels))))


def flow_timetable(steps: int, shift: float = 1.0) -> Timetable:
    """The timetable assumed for a bare denoiser."""
    return of_flow(uniform(steps, shift))


def of_flow(schedule: SigmaSchedule) -> Timetable:
    """A flow's timetable: it is called with its noise levels."""
    return Timetable(schedule, schedule.sigmas)
