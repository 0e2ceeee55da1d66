"""A schedule and its forecast, as a calibration tries them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .policy import Policy

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

    @classmethod
    def of(cls, policy: Policy, full_steps: tuple[int, ...]) -> Candidate:
        """A policy's own forecast on these full steps."""
        forecast, energy = policy.forecast, policy.options().get("energy", cls.energy)
        gains, order, coordinate = forecast.gains, forecast.order, forecast.coordinate
        return cls(full_steps, gains, order, coordinate, energy, corrected=policy.corrected)

    def options(self, policy: Policy) -> dict[str, Any]:
        """Its choices as a policy takes them: the energy is one of principal subspaces only."""
        return {name: value for name, value in vars(self).items() if name != "energy" or name in policy.options()}
