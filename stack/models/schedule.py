"""The timetable of a request, read from a diffusers scheduler."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class SigmaSchedule:
    """The noise levels of a request, largest first and without the final 0, and the shift they were made with."""

    sigmas: tuple[float, ...]
    shift: float = 1.0

    def step(self, sigma: float) -> int:
        """Index of the nearest noise level."""
        if sigma in self.places:
            return self.places[sigma][0]
        return min(range(len(self.sigmas)), key=lambda i: abs(self.sigmas[i] - sigma))

    @cached_property
    def places(self) -> dict[float, tuple[int, float]]:
        """The schedule's own noise levels, each with its index and its unshifted time."""
        return {sigma: (index, self.time(sigma)) for index, sigma in reversed(list(enumerate(self.sigmas)))}

    def time(self, sigma: float) -> float:
        """Unshifted time u: sigma = s u / (1 + (s - 1) u), solved for u."""
        return sigma / (self.shift - (self.shift - 1) * sigma)


def uniform(steps: int, shift: float = 1.0) -> SigmaSchedule:
    """The schedule of a flow model with this shift: u = 1, 1 - 1/S, ..., 1/S."""
    times = (1 - i / steps for i in range(steps))
    return SigmaSchedule(tuple(shift * u / (1 + (shift - 1) * u) for u in times), shift)


def shift_of(config: Any, image_tokens: int) -> float:
    """The shift s of a flow-matching scheduler at this number of image tokens.

    With dynamic shifting FLUX computes mu, linear in the tokens, and s = exp(mu) (Esser et al. 2024, eq. 23).
    """
    if config.get("use_dynamic_shifting"):
        low, high = config["base_image_seq_len"], config["max_image_seq_len"]
        slope = (config["max_shift"] - config["base_shift"]) / (high - low)
        mu = config["base_shift"] + slope * (image_tokens - low)
        return math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else max(mu, 1e-3)
    return float(config.get("shift") or config.get("flow_shift") or 1.0)


def source_of(scheduler: Any) -> Any:
    """What `sigma_schedule_of` reads: the same object as long as the schedule is the same."""
    made = vars(scheduler).get("sigmas")
    return scheduler.timesteps if made is None else made


def sigma_schedule_of(scheduler: Any, image_tokens: int) -> SigmaSchedule:
    """The schedule that `scheduler.set_timesteps` has just made, kept on the host: no device sync.

    A scheduler of discrete times (DDIM) has no noise levels: its times, as shares of the training's, stand for them.
    """
    made = vars(scheduler).get("sigmas")
    if made is None:
        times = [t / scheduler.config["num_train_timesteps"] for t in scheduler.timesteps.tolist()]
        return SigmaSchedule(tuple(times))
    sigmas = made.tolist()
    if len(sigmas) > 1 and sigmas[-1] == 0:
        sigmas = sigmas[:-1]
    return SigmaSchedule(tuple(sigmas), shift_of(scheduler.config, image_tokens))


def default_sigma_schedule(steps: int, shift: float = 1.0) -> SigmaSchedule:
    """The timetable assumed for a bare denoiser."""
    return uniform(steps, shift)
