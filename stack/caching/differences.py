"""The divided differences of one feature over its full steps, newest node first, and the noise mixed into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..compat.noise import Mix, NoiseLedger, blend, combine, drowned, without
from .forecast import Forecast, gaps


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
    """Carry the differences on to a new full step.

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
    """The same over gaps wide enough for the noise: full steps too near to tell a change are passed over.

    A step is passed over while most of the first difference's power is noise and an older one is there to take its
    place, so that it costs nothing but a longer gap. Newton's differences only: the others depend on every step.
    """
    found = differences(forecast, feature, x, old, mix)
    while forecast.basis == "newton" and not forecast.smoothing and len(old.values) > 1:
        if not drowned(found.values[1], ledger.variance(found.mixes[1])):
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
