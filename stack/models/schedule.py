"""The timetable of a request, read from a diffusers scheduler."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from ..core.errors import StackError

SHIFTS = (1e-3, 1e3)  # far beyond what models are used with
# What FLUX's pipelines take where a scheduler's configuration does not say.
DYNAMIC_SHIFT = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
TRAINED = 1000  # training steps of a scheduler whose configuration does not say
CLOSE = 1e-3  # relative: neighbours in schedules of 500 steps still differ by more
LARGEST_LOG_SNR = 30.0  # stands for no signal at all
FLOW_MATCH = 1e-3  # of the training steps: a flow's timesteps are its noise levels to this, float32 rounding included


@dataclass(frozen=True)
class SigmaSchedule:
    """The noise levels of a request, largest first and without the final 0, and the shift they were made with.

    Attributes:
        begin: which step of the sampler's whole schedule the first one is: image to image starts in the middle.
        known: whether it is the sampler's; else it is a single call whose place on a schedule is not known.
        log_snr: log of signal over noise at each step; () for a flow, whose noise levels say it, and where unknown.
    """

    sigmas: tuple[float, ...]
    shift: float = 1.0
    begin: int = 0
    known: bool = True
    log_snr: tuple[float, ...] = ()

    @property
    def flow(self) -> bool:
        """Whether its noise levels are those of a flow: x = (1 - s) x0 + s noise."""
        return not self.log_snr and all(0 < sigma <= 1 for sigma in self.sigmas)

    @cached_property
    def levels(self) -> tuple[tuple[float, float], ...]:
        """(unshifted time, log of signal over noise) of each step; () where that is unknown or rises again."""
        log_snr = self.log_snr
        if self.flow:
            log_snr = tuple(map(flow_log_snr, self.sigmas))
        levels = tuple(zip(self.times, log_snr, strict=False))
        falls = all(a == b or (a[0] > b[0] and a[1] < b[1]) for a, b in pairwise(levels))
        return levels if falls and len(levels) == len(self.sigmas) else ()

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
        if not begin:
            return self
        return replace(self, sigmas=self.sigmas[begin:], begin=self.begin + begin, log_snr=self.log_snr[begin:])


def flow_log_snr(sigma: float) -> float:
    """Log of signal over noise of a flow at a noise level in (0, 1]; -inf at 1."""
    return math.log((1 - sigma) / sigma) if sigma < 1 else -math.inf


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
        mu = _mu(config, image_tokens)
        return math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else max(mu, 1e-3)
    return float(config.get("shift") or config.get("flow_shift") or 1.0)


def _mu(config: Any, image_tokens: int) -> float:
    found = {name: config.get(name, usual) for name, usual in DYNAMIC_SHIFT.items()}
    low, slope = found["base_image_seq_len"], found["max_shift"] - found["base_shift"]
    return found["base_shift"] + slope * (image_tokens - low) / (found["max_image_seq_len"] - low)


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


def was_made(scheduler: Any) -> bool:
    """Whether the scheduler has made a schedule: one that has not holds all training steps, without their end."""
    own = vars(scheduler)
    made, trained = own.get("sigmas"), scheduler.config.get("num_train_timesteps")
    fresh = len(scheduler.timesteps) == trained and own.get("num_inference_steps") is None
    return not fresh or (made is not None and len(made) > len(scheduler.timesteps))


def timetable_of(scheduler: Any, image_tokens: int) -> Timetable:
    """The schedule that `scheduler.set_timesteps` has just made, kept on the host: read once per request.

    Noise levels are sigmas for a flow. For other samplers they are the timesteps as shares of the training's: sigmas
    have no common scale there (EDM's reach 157), the timesteps that the denoiser receives do.
    """
    timesteps = scheduler.timesteps.tolist()
    trained = scheduler.config.get("num_train_timesteps") or TRAINED
    own, levels = vars(scheduler), tuple(t / trained for t in timesteps)
    made, kept = own.get("sigmas"), own.get("alphas_cumprod")
    log_snr: tuple[float, ...] = (math.nan,) * len(timesteps)
    if made is not None and len(made) >= len(timesteps) and "sigmas_interpol" not in own:
        sigmas = made.tolist()[: len(timesteps)]
        if all(abs(s - level) <= FLOW_MATCH for s, level in zip(sigmas, levels, strict=True)):
            levels, log_snr = tuple(sigmas), ()
        elif scheduler.config.get("prediction_type") == "flow_prediction" and all(0 < s <= 1 for s in sigmas):
            log_snr = tuple(map(flow_log_snr, sigmas))
        elif all(sigma > 0 for sigma in sigmas):
            log_snr = tuple(-math.log(sigma) for sigma in sigmas)  # over a signal of 1
    elif kept is not None:
        log_snr = _diffusion_log_snr(timesteps, kept.tolist())
    return Timetable(_schedule(levels, log_snr, scheduler, image_tokens), tuple(t / TRAINED for t in timesteps))


def _diffusion_log_snr(timesteps: list[float], kept: list[float]) -> tuple[float, ...]:
    """Of timesteps of a variance-preserving sampler, by its share of signal power at every training step."""
    log_snr = [0.5 * math.log(share / (1 - share)) if 0 < share < 1 else -LARGEST_LOG_SNR for share in kept]
    return tuple(np.interp(timesteps, range(len(kept)), log_snr).tolist())


def _schedule(
    levels: tuple[float, ...], log_snr: tuple[float, ...], scheduler: Any, image_tokens: int
) -> SigmaSchedule:
    schedule = SigmaSchedule(levels, shift_of(scheduler.config, image_tokens), log_snr=log_snr)
    falls = all(a >= b for a, b in pairwise(levels))
    # A level that rises again has no time of its own.
    return schedule if falls else SigmaSchedule(tuple(1 - i / len(levels) for i in range(len(levels))))


def timetable_ahead(scheduler: Any, steps: int, image_tokens: int) -> Timetable | None:
    """The timetable that a pipeline's call of as many steps will most likely make; None where that cannot be said.

    Pipelines of flows whose shift depends on the picture's size hand over the noise levels 1, 1 - 1/S, ..., 1/S.
    """
    made = copy.deepcopy(scheduler)
    try:
        set_ahead(made, steps, image_tokens)
        timetable = timetable_of(made, image_tokens)
    except (ValueError, TypeError, IndexError, AttributeError, RuntimeError):
        return None  # a scheduler that asks for more than its pipeline would say
    return timetable if len(timetable.timesteps) == steps else None


def set_ahead(scheduler: Any, steps: int, image_tokens: int) -> None:
    """Let a scheduler make its schedule as pipelines do."""
    if scheduler.config.get("use_dynamic_shifting"):
        sigmas = [1 - i / steps for i in range(steps)]
        scheduler.set_timesteps(sigmas=sigmas, mu=_mu(scheduler.config, image_tokens))
    else:
        scheduler.set_timesteps(steps)


def flow_timetable(steps: int, shift: float = 1.0) -> Timetable:
    """The timetable assumed for a bare denoiser."""
    return of_flow(uniform(steps, shift))


def of_flow(schedule: SigmaSchedule) -> Timetable:
    """A flow's timetable: it is called with its noise levels."""
    return Timetable(schedule, schedule.sigmas)
