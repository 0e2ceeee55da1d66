"""The 4-bit levels of a scheme as a grid: a weight becomes low + level * step, step and low being its group's."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..formats import NF4_LEVELS, Stored, pack_levels
from ..kernels.rows import SMALLEST_STEP
from ..schemes import Scheme

# Steps that are tried for a group, as a share of the one at which all its weights are in range: with few levels it
# pays to clip the largest and round the others more finely.
SHRINKS = tuple(1 - 0.025 * i for i in range(21))


@dataclass(frozen=True)
class Rounded:
    """A weight (N, K) on a grid; numbers that are stored in 16 bits already have only as many.

    Attributes:
        codes: (N, K) uint8, indices of levels.
        step, low: (N, G) float32, one per group.
    """

    codes: torch.Tensor
    step: torch.Tensor
    low: torch.Tensor


@dataclass(frozen=True)
class RoundingGrid:
    """What a weight with K input features may become.

    Attributes:
        scheme: a 4-bit one.
        dtype: in which steps are stored.
    """

    scheme: Scheme
    dtype: torch.dtype = torch.bfloat16

    def levels(self, device: torch.device) -> torch.Tensor:
        """(16,) float32, ascending, with as many bits as they are stored in."""
        if self.scheme.kind == "nf4":
            return torch.tensor(NF4_LEVELS, dtype=self.dtype, device=device).float()  # as `formats.load` reads them
        return torch.arange(16.0, device=device)

    def spread(self, values: torch.Tensor, inner: int) -> torch.Tensor:
        """Values per group (N, G) written out per input channel, (N, K)."""
        return values.repeat_interleave(self.scheme.group, 1)[:, :inner]

    def storable(self, values: torch.Tensor) -> torch.Tensor:
        """As they come back from storage; float32."""
        return values.to(self.dtype).float()

    def safe(self, step: torch.Tensor) -> torch.Tensor:
        """Steps that can be divided by."""
        return torch.where(step.abs() < SMALLEST_STEP, torch.full_like(step, SMALLEST_STEP), step)

    def middles(self, device: torch.device) -> torch.Tensor:
        """(15,) the boundaries between levels: `torch.bucketize` by them finds the nearest one."""
        levels = self.levels(device)
        return (levels[1:] + levels[:-1]) / 2

    def decoded(self, rounded: Rounded) -> torch.Tensor:
        """The weight (N, K) float32."""
        inner = rounded.codes.shape[1]
        level = self.levels(rounded.codes.device)[rounded.codes.int()]
        return level * self.spread(rounded.step, inner) + self.spread(rounded.low, inner)

    def stored(self, rounded: Rounded) -> Stored:
        """The weight as it is kept."""
        codes = torch.nn.functional.pad(rounded.codes, (0, -rounded.codes.shape[1] % self.scheme.group))
        low = None if self.scheme.kind == "nf4" else rounded.low.to(self.dtype)
        return Stored(self.scheme, pack_levels(codes), rounded.step.to(self.dtype), low, rounded.codes.shape[1])


def fitted(weight: torch.Tensor, grid: RoundingGrid, importance: torch.Tensor | None = None) -> Rounded:
    """Every weight to its nearest level; each group has the step of those in `SHRINKS` that costs least.

    Args:
        weight: (N, K) float32.
        importance: (K,) what a squared error of a channel costs; None for all the same.
    """
    inner, group = weight.shape[1], grid.scheme.group
    missing = -inner % group
    # The last weight repeated, not zeros: a group's range must not grow by its padding.
    groups = torch.cat([weight, weight[:, -1:].expand(-1, missing)], 1).unflatten(1, (-1, group))
    costs = torch.ones(inner, device=weight.device) if importance is None else importance.float()
    costs = torch.nn.functional.pad(costs, (0, missing)).view(-1, group)
    levels, middles = grid.levels(weight.device), grid.middles(weight.device)
    least = torch.full(groups.shape[:2], torch.inf, device=weight.device)
    step = low = torch.zeros_like(least)
    codes = torch.zeros_like(groups, dtype=torch.uint8)
    for shrink in SHRINKS:
        tried = _range(groups, grid, shrink)
        level = torch.bucketize((groups - tried[1][..., None]) / grid.safe(tried[0])[..., None], middles)
        error = levels[level] * tried[0][..., None] + tried[1][..., None] - groups
        cost = (error.square() * costs).sum(2)
        better = cost < least
        step, low = torch.where(better, tried[0], step), torch.where(better, tried[1], low)
        codes, least = torch.where(better[..., None], level.to(torch.uint8), codes), torch.minimum(cost, least)
    return Rounded(codes.flatten(1)[:, :inner], step, low)


def _range(groups: torch.Tensor, grid: RoundingGrid, shrink: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Step and low (N, G) that reach from one end of each group to the other, both ends drawn in."""
    if grid.scheme.kind == "nf4":
        step = grid.storable(groups.abs().amax(2) * shrink)
        return step, torch.zeros_like(step)
    lowest, highest = groups.amin(2), groups.amax(2)
    middle, half = (lowest + highest) / 2, (highest - lowest) / 2 * shrink
    low = grid.storable(middle - half)
    return grid.storable((middle + half - low) / 15), low
