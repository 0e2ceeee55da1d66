"""What stands in for the blocks on a cached step: SVD-Cache's split of a feature, extrapolated in time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..compat.subspace import principal_basis
from ..errors import StackError


@dataclass(frozen=True)
class Gains:
    """How far each part of the feature follows its last measured slope. 0 is reuse, 1 is full extrapolation.

    SVD-Cache as published predicts the principal part and reuses the residual: (1, 0). Reuse is (0, 0), first-order
    Taylor in the full space is (1, 1). Which is best is a matter of the model and is what calibration measures.
    """

    principal: float = 1.0
    residual: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 <= gain <= 2 for gain in (self.principal, self.residual)):
            raise StackError(f"gains must be in [0, 2], got principal={self.principal}, residual={self.residual}")


class SubspacePredictor:
    """Extrapolates one feature of one guidance branch from its full evaluations.

    On a full step the slope of the principal coefficients A = F V and that of the residual are measured over the real
    gap in time (divided difference, optionally averaged with the previous slope: an EMA of the velocity), multiplied by
    their gains and stored as one direction. A cached step is then a single multiply-add:

        F(t) = F(t0) + (t - t0) * (g_p V V^T + g_r (1 - V V^T)) dF/dt

    The time coordinate is the schedule's unshifted time, never a call count. The basis V is fitted on the first feature
    of the request (uncentred, rank by energy) and kept: `methods` reports V as nearly constant over prompts and steps.

    Attributes:
        bytes: memory held, in bytes.
    """

    def __init__(self, energy: float, gains: Gains, beta: float):
        self.energy, self.gains, self.beta = energy, gains, beta
        self.basis: torch.Tensor | None = None
        self._feature: torch.Tensor | None = None
        self._time = 0.0
        self._velocity: torch.Tensor | None = None
        self._direction: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        held = {id(t): t for t in (self.basis, self._feature, self._velocity, self._direction) if t is not None}
        return sum(t.numel() * t.element_size() for t in held.values())

    @property
    def ready(self) -> bool:
        """Whether a full step has been seen."""
        return self._feature is not None

    def update(self, feature: torch.Tensor, time: float) -> None:
        """Take in the feature (B, N, D) of a full step at `time`."""
        if self._feature is not None and time != self._time:
            slope = (feature - self._feature) / (time - self._time)
            if self._velocity is not None and self.beta:
                slope = torch.lerp(slope, self._velocity, self.beta)
            self._velocity = slope if self.beta else None
            self._direction = self._shape(slope)
        elif self._needs_basis:
            self.basis = principal_basis(feature, self.energy)
        self._feature, self._time = feature, time

    @property
    def _needs_basis(self) -> bool:
        # Equal gains act on both parts alike: the split would be computed and thrown away.
        return self.basis is None and self.gains.principal != self.gains.residual

    def _shape(self, slope: torch.Tensor) -> torch.Tensor:
        if self.basis is None:
            return self.gains.principal * slope
        excess = (self.gains.principal - self.gains.residual) * ((slope @ self.basis) @ self.basis.mT)
        return excess if self.gains.residual == 0 else torch.add(excess, slope, alpha=self.gains.residual)

    def predict(self, time: float) -> torch.Tensor:
        """The feature (B, N, D) at another time. Before a second full step it is plain reuse."""
        if self._feature is None:
            raise StackError("nothing to predict from: no full step has run in this request")
        if self._direction is None:
            return self._feature
        return torch.add(self._feature, self._direction, alpha=time - self._time)
