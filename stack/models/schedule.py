"""The timetable of a request, read from a diffusers scheduler."""

from __future__ import annotations

import math
from typing import Any

from ..clock import Timetable, uniform


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
    """What `timetable_of` reads: the same object as long as the schedule is the same."""
    made = vars(scheduler).get("sigmas")
    return scheduler.timesteps if made is None else made


def timetable_of(scheduler: Any, image_tokens: int) -> Timetable:
    """The schedule that `scheduler.set_timesteps` has just made, kept on the host: no device sync.

    A scheduler of discrete times (DDIM) has no noise levels: its times, as shares of the training's, stand for them.
    """
    made = vars(scheduler).get("sigmas")
    if made is None:
        times = [t / scheduler.config["num_train_timesteps"] for t in scheduler.timesteps.tolist()]
        return Timetable(tuple(times))
    sigmas = made.tolist()
    if len(sigmas) > 1 and sigmas[-1] == 0:
        sigmas = sigmas[:-1]
    return Timetable(tuple(sigmas), shift_of(scheduler.config, image_tokens))


def default_timetable(steps: int, shift: float = 1.0) -> Timetable:
    """The timetable assumed for a bare denoiser."""
    return uniform(steps, shift)
