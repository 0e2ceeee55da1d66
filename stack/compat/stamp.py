"""Under which conditions a cached tensor was made. Other conditions: it is dropped and counted, never reused."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch

from ..clock import Tick


@dataclass(frozen=True)
class Stamp:
    """Everything a cached feature depends on.

    Attributes:
        request, branch: whose trajectory it lies on.
        weights: what tells the weights apart: the stack's count of its own changes, and their content.
        shape, dtype, device: of the latent tokens it was made from.
    """

    request: int
    branch: str
    weights: Hashable
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def stamp_of(tick: Tick, weights: Hashable, tokens: torch.Tensor) -> Stamp:
    """The stamp of a feature made in this call from these tokens."""
    return Stamp(tick.request, tick.branch, weights, tuple(tokens.shape), tokens.dtype, tokens.device)
