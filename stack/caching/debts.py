"""What full steps have shown of the forecasts before them, and what is still to be made up for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..bounds import lagrange_weights
from ..models.sampler import LinearSampler


@dataclass
class Debts:
    """What the corrector holds of one slot. All tensors are estimates (B, N, C) of the clean sample, in fp32.

    Attributes:
        full: those of as many past full steps as are asked for, with their calls, newest first.
        used: those of the cached calls since, as they were forecast.
        owed: what is to be added at calls to come.
    """

    full: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    used: dict[int, torch.Tensor] = field(default_factory=dict)
    owed: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(x0.nbytes for x0 in (*(x0 for _, x0 in self.full), *self.used.values(), *self.owed.values()))

    def missed(self, call: int, x0: torch.Tensor, at: Sequence[float], order: int) -> list[torch.Tensor]:
        """What the cached calls before a full step should have used, less what they did; see `ran`."""
        nodes = [(call, x0), *self.full[:order]]
        return [interpolated(at[cached], at, nodes) - used for cached, used in self.used.items()]

    def ran(
        self,
        call: int,
        x0: torch.Tensor,
        sampler: LinearSampler,
        at: Sequence[float],
        order: int,
        keep: int = 0,
    ) -> torch.Tensor:
        """A full step's estimate is known: what the cached calls just before should have used, less what they did.

        Args:
            at: coordinates of all calls.
            order: of the interpolation.
            keep: how many full steps to remember, at least as many as the order.

        Returns:
            How far the estimates that were used are off, over the size of the sample: a number (), of their mean by
            the weights that they have in the latent now. The difference of forecast and interpolation is Milne's
            estimate of a forecast's error (1926). NaN where there were no cached calls.
        """
        calls, missed = list(self.used), self.missed(call, x0, at, order)
        self.full, self.used = [(call, x0), *self.full][: max(order, keep)], {}
        due = sampler.settling(call, calls) if calls else {}
        for later, factors in due.items():
            shift = sum(float(factor) * debt for factor, debt in zip(factors, missed, strict=True))
            self.owed[later] = self.owed[later] + shift if later in self.owed else torch.as_tensor(shift)
        weights = sampler.weights[call, calls]
        if not weights.sum():
            return torch.full_like(x0[0, 0, 0], torch.nan)
        shares = (weights / weights.sum()).tolist()
        off = torch.stack([share * debt for share, debt in zip(shares, missed, strict=True)]).sum(0)
        return off.norm() / x0.norm().clamp_min(torch.finfo(x0.dtype).tiny)

    def clear(self) -> None:
        """Forget everything."""
        self.full.clear()
        self.used.clear()
        self.owed.clear()


def lagrange(x: float, nodes: Sequence[float]) -> list[float]:
    """Weights at x of the polynomial through values at these nodes; of nodes at the same place the first counts."""
    apart = list(dict.fromkeys(nodes))
    weights = dict(zip(apart, lagrange_weights(apart, x), strict=True))
    return [weights.pop(node, 0.0) for node in nodes]


def interpolated(x: float, at: Sequence[float], nodes: Sequence[tuple[int, torch.Tensor]]) -> torch.Tensor:
    """The estimate at x on the polynomial through those of these calls.

    Args:
        at: coordinates of all calls.
        nodes: calls with their estimates.
    """
    weights = lagrange(x, [at[call] for call, _ in nodes])
    return torch.stack([weight * x0 for weight, (_, x0) in zip(weights, nodes, strict=True)]).sum(0)
