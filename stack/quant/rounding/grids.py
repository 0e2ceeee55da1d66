"""Grids that weights are rounded to: a few levels, times a scale per group of input channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ...errors import StackError

SMALLEST_SCALE = 1e-30
# Scales that are tried for a group, as a share of the one at which its largest weight is just in range: with few
# levels it pays to clip that one and round the others more finely.
SHRINKS = tuple(1 - 0.025 * i for i in range(21))

# Quantiles of a normal distribution, scaled to [-1, 1] and with an exact zero (Dettmers et al. 2023, appendix E).
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """What a weight may become: a level times its group's scale.

    Attributes:
        bits: of a code.
        group: input channels that share a scale; 0 for a whole row.
        normal: levels are the quantiles of a normal distribution (4 bits only); else they are evenly spaced.

    Raises:
        StackError: bits outside 2 to 8, a normal grid of other than 4 bits, or a negative group.
    """

    bits: int = 4
    group: int = 64
    normal: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8 or self.group < 0:
            raise StackError(f"expected 2 to 8 bits and groups of 0 or more, got {self.bits} bits, group {self.group}")
        if self.normal and self.bits != 4:
            raise StackError(f"the levels of nf4 are known for 4 bits, got {self.bits}: try normal=False")

    def levels(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """(2^bits,) float32, ascending, the largest magnitude 1 (evenly spaced: -1 to 1 - 2^(1 - bits))."""
        if self.normal:
            return torch.tensor(_NF4, device=device)
        half = 1 << (self.bits - 1)
        return torch.arange(-half, half, device=device, dtype=torch.float32) / half

    def width(self, inner: int) -> int:
        """Input channels per scale, for a weight with `inner` of them; the last group may be shorter."""
        return min(self.group or inner, inner)


class Coded(NamedTuple):
    """A rounded weight.

    Attributes:
        codes: (N, K) uint8, indices of levels.
        scale: (N, G) bfloat16-representable float32, one per group.
    """

    codes: torch.Tensor
    scale: torch.Tensor


def nearest(values: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Index (uint8) of the level nearest to each value."""
    return torch.bucketize(values, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)


def spread(scale: torch.Tensor, width: int, inner: int) -> torch.Tensor:
    """Scales (N, G) written out per input channel, (N, K)."""
    return scale.repeat_interleave(width, 1)[:, :inner]


def decoded(coded: Coded, grid: Grid) -> torch.Tensor:
    """The weight (N, K) float32 that codes and scales stand for."""
    inner = coded.codes.shape[1]
    levels = grid.levels(coded.codes.device)
    return levels[coded.codes.int()] * spread(coded.scale, grid.width(inner), inner)


def storable(scale: torch.Tensor) -> torch.Tensor:
    """Scales as they are stored: 16 bits. float32 in, float32 out."""
    return scale.to(torch.bfloat16).float()


def group_scales(weight: torch.Tensor, grid: Grid, importance: torch.Tensor | None = None) -> torch.Tensor:
    """A scale for each group: of those in `SHRINKS` the one with the least squared rounding error.

    Args:
        weight: (N, K) float32.
        importance: (K,) what a squared error of a channel costs; None for all the same.

    Returns:
        (N, G), signed: the largest weight of an evenly spaced group lies at the end that reaches -1.
    """
    inner = weight.shape[1]
    width = grid.width(inner)
    missing = -inner % width
    groups = torch.nn.functional.pad(weight, (0, missing)).unflatten(1, (-1, width))
    costs = torch.ones(inner, device=weight.device) if importance is None else importance
    costs = torch.nn.functional.pad(costs, (0, missing)).view(-1, width)
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    levels = grid.levels(weight.device)
    best, least = largest, torch.full_like(largest, torch.inf)
    for shrink in SHRINKS:
        # Evenly spaced levels reach further below than above: the largest weight belongs to the longer side.
        scale = largest.abs() if grid.normal else -largest
        scale = storable(scale * shrink)
        safe = torch.where(scale.abs() < SMALLEST_SCALE, torch.ones_like(scale), scale)
        error = levels[nearest(groups / safe, levels).int()] * scale - groups
        cost = (error.square() * costs).sum(2, keepdim=True)
        best, least = torch.where(cost < least, scale, best), torch.minimum(cost, least)
    return best.squeeze(2)


def round_to(weight: torch.Tensor, grid: Grid, scale: torch.Tensor) -> Coded:
    """Every weight to its nearest level."""
    inner = weight.shape[1]
    wide = spread(scale, grid.width(inner), inner)
    safe = torch.where(wide.abs() < SMALLEST_SCALE, torch.ones_like(wide), wide)
    return Coded(nearest(weight / safe, grid.levels(weight.device)), scale)
