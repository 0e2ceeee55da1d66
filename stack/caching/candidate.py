"""A schedule and its forecast, as a calibration tries them."""

from __future__ import annotations

from dataclasses import dataclass

Gain = tuple[float, float]
PUBLISHED, WHOLE = (1.0, 0.0), (1.0, 1.0)


@dataclass(frozen=True)
class Candidate:
    """A schedule, and the forecast that goes with it.

    Attributes:
        full_steps: step 0 first.
        gains, order, coordinate, energy: see `stack.caching.forecast.Forecast` and `stack.caching.splits.ChannelBasis`.
        segments: a factor on the gains per full step; empty is 1 throughout.
        corrected: see `stack.caching.corrector`.
    """

    full_steps: tuple[int, ...]
    gains: Gain = WHOLE
    order: int = 1
    coordinate: str = "time"
    energy: float = 0.85
    segments: tuple[float, ...] = ()
    corrected: bool = False
