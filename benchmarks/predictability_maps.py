"""How predictable a feature is over time, its principal part and its residual apart. Pure tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stack.compat.subspace import principal_basis


@dataclass(frozen=True)
class Predictability:
    """Of one feature between three evenly spaced steps. Shares in (-inf, 1]: 1 is predicted exactly, 0 is what reuse
    does, below 0 extrapolation is worse than reuse.

    Attributes:
        change: norm of the change over one gap, as a share of the feature's norm: what reuse leaves.
        principal, residual: share of the squared change that linear extrapolation explains, part by part.
        residual_change: the residual's share of the squared change.
    """

    change: float
    principal: float
    residual: float
    residual_change: float


def split(feature: torch.Tensor, basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Principal part F V V^T and residual F - F V V^T of a feature (B, N, D)."""
    principal = (feature @ basis) @ basis.mT
    return principal, feature - principal


def explained(older: torch.Tensor, newer: torch.Tensor, now: torch.Tensor, basis: torch.Tensor) -> Predictability:
    """What going on from `older` to `newer` tells about `now`, one gap later.

    Args:
        older, newer, now: features (B, N, D) at times t - 2g, t - g and t.
        basis: (B, D, k), see `principal_basis`.
    """
    change, error = now - newer, (now - newer) - (newer - older)
    moved, missed = ([float(part.square().sum()) for part in split(x, basis)] for x in (change, error))
    tiny = torch.finfo(now.dtype).tiny
    shares = [1 - b / max(a, tiny) for a, b in zip(moved, missed, strict=True)]
    return Predictability(
        change=float(change.norm() / now.norm().clamp_min(tiny)),
        principal=shares[0],
        residual=shares[1],
        residual_change=moved[1] / max(sum(moved), tiny),
    )


def over_time(features: Sequence[torch.Tensor], gap: int, energy: float) -> list[Predictability]:
    """Predictability at every step from 2 `gap` on; the basis is that of the first feature, as an online cache has it.

    Args:
        features: one (B, N, D) per step of one request.
        energy: share of the first feature's squared norm that the principal part holds.
    """
    basis = principal_basis(features[0], energy)
    steps = range(2 * gap, len(features))
    return [explained(features[s - 2 * gap], features[s - gap], features[s], basis) for s in steps]
