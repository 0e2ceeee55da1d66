"""What stands in for a feature on a cached step: a sum of its differences over past full steps.

Every published forecast is one row of this table. With D_0 = F(x0) the newest full feature, x0 > x1 > ... past
coordinates (newest first) and gains g:

    F(x) = D_0 + sum_{i=1..order} g phi_i(x) D_i

| basis   | D_i                                               | phi_i(x)                                        |
|---------|---------------------------------------------------|-------------------------------------------------|
| newton  | divided differences over the real gaps            | (x - x0) ... (x - x_{i-1})                      |
| taylor  | TaylorSeer's: every order divides by the last gap | (x - x0)^i / i!                                 |
| hermite | as taylor                                         | s^i H_i(s (x - x0)) / i!, H_i physicists', HiCache |

Newton's form is exact for polynomials on irregular gaps; TaylorSeer's recursion is not, and is kept as published.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..compat.noise import Mix, NoiseLedger, blend, combine, drowned, without
from ..core.errors import StackError, choose
from .options import Options

BASES = ("newton", "taylor", "hermite")
COORDINATES = ("time", "step", "sigma", "log-snr")
HIGHEST_ORDER = 4


@dataclass(frozen=True)
class Forecast(Options):
    """How a feature is extrapolated.

    Attributes:
        order: of the highest difference; 0 is reuse.
        gains: (principal, residual) factors on all differences. (1, 0) predicts the principal part and reuses the
            residual, as SVD-Cache does; (1, 1) extrapolates the whole feature; (0, 0) is reuse.
        basis: "newton", "taylor" or "hermite".
        level: weight of the older value in an EMA of the principal part itself: SVD-Cache as printed has 0.9.
        smoothing: weight of the older slope in an EMA of the first difference.
        coordinate: what x is: "time" (the schedule's unshifted time), "step", "sigma" or "log-snr".

    Raises:
        StackError: a value outside its range.
    """

    order: int = 1
    gains: tuple[float, float] = (1.0, 0.0)
    basis: str = "newton"
    level: float = 0.0
    smoothing: float = 0.0
    coordinate: str = "time"

    def check_values(self) -> None:
        if not 0 <= self.order <= HIGHEST_ORDER:
            raise StackError(f"order must be in 0..{HIGHEST_ORDER}, got {self.order}")
        if self.basis not in BASES:
            raise choose("basis of a forecast", self.basis, BASES)
        if self.coordinate not in COORDINATES:
            raise choose("coordinate", self.coordinate, COORDINATES)
        if len(self.gains) != 2 or not all(0 <= gain <= 2 for gain in self.gains):
            raise StackError(f"gains must be (principal, residual), each in [0, 2], got {self.gains}")
        for name, value in (("level", self.level), ("smoothing", self.smoothing)):
            if not 0 <= value < 1:
                raise StackError(f"{name} must be in [0, 1), got {value}: it is the weight of the older value")

    @property
    def splits(self) -> bool:
        """Whether principal part and residual are treated differently at all."""
        return self.level > 0 or (self.order > 0 and self.gains[0] != self.gains[1])

    @property
    def effective_order(self) -> int:
        """0 where every gain is 0: differences would be computed and thrown away."""
        return self.order if any(self.gains) else 0


def gaps(forecast: Forecast, x: float, past: Sequence[float]) -> list[float]:
    """What the differences of order 1, 2, ... are divided by at a full step at x, given past x (newest first)."""
    orders = range(min(forecast.effective_order, len(past)))
    return [x - past[i if forecast.basis == "newton" else 0] for i in orders]


def coordinate(name: str, step: int, time: float, sigma: float) -> float:
    """The coordinate of a denoiser call. "log-snr" is that of a flow: log((1 - sigma) / sigma), kept finite."""
    if name == "log-snr":
        inside = min(max(sigma, 1e-4), 1 - 1e-4)
        return math.log((1 - inside) / inside)
    return {"time": time, "step": float(step), "sigma": sigma}[name]


@dataclass
class Differences:
    """Differences of order 0, 1, ... at the newest full step.

    Attributes:
        values: (B, N, D) each; order 0 is the feature itself.
        nodes: coordinates of the full steps behind them, newest first.
        mixes: what each is mixed of; empty where no noise is known.
    """

    values: list[torch.Tensor]
    nodes: list[float]
    mixes: list[Mix]

    def kept(self, orders: int) -> Differences:
        """The first `orders` differences."""
        return Differences(self.values[:orders], self.nodes, self.mixes[:orders])


NOTHING = Differences([], [], [])


def differences(forecast: Forecast, feature: torch.Tensor, x: float, old: Differences, mix: Mix) -> Differences:
    """The differences at a new full step, from those at the full step before.

    Args:
        feature: (B, N, D) at coordinate x.
        old: of the full step before, with as many orders as are kept.
        mix: of the new feature; empty where no noise is known.
    """
    values, mixes = [feature], [mix]
    for order, gap in enumerate(gaps(forecast, x, old.nodes)):
        if order >= len(old.values):
            break
        values.append((values[order] - old.values[order]) / gap)
        mixes.append(combine(mixes[order], old.mixes[order], gap))
    if forecast.smoothing and len(values) > 1 and len(old.values) > 1:
        values[1] = torch.lerp(values[1], old.values[1].to(values[1].dtype), forecast.smoothing)
        mixes[1] = blend(mixes[1], old.mixes[1], forecast.smoothing)
    return Differences(values, [x, *old.nodes], mixes)


def over_wide_gaps(
    forecast: Forecast, feature: torch.Tensor, x: float, old: Differences, mix: Mix, ledger: NoiseLedger
) -> Differences:
    """The same over gaps wide enough for the noise: full steps too close together to measure a change are left out.

    A step is left out while most of the first difference's power is noise and an older one can take its place, so
    the only cost is a longer gap. Newton's differences only: the others depend on every step.
    """
    found = differences(forecast, feature, x, old, mix)
    while forecast.basis == "newton" and not forecast.smoothing and len(old.values) > 1:
        if not drowned(found.values[1], ledger.variance(found.mixes[1]), ledger.ranks):
            break
        old = before_newest(old)
        found = differences(forecast, feature, x, old, mix)
    return found


def before_newest(old: Differences) -> Differences:
    """Newton's differences as they were without the newest node x_0, one order fewer.

    F[x_1 ... x_(i+1)] = F[x_0 ... x_i] - (x_0 - x_(i+1)) F[x_0 ... x_(i+1)].
    """
    factors = [old.nodes[0] - node for node in old.nodes[1 : len(old.values)]]
    pairs = zip(old.values, old.values[1:], factors, strict=False)
    values = [torch.sub(low, high, alpha=factor) for low, high, factor in pairs]
    mixes: Sequence[Mix] = [
        without(low, high, factor) for low, high, factor in zip(old.mixes, old.mixes[1:], factors, strict=False)
    ]
    return Differences(values, old.nodes[1:], list(mixes))
