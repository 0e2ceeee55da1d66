"""Which key blocks each query block attends to.

Shapes: B batch, S joint sequence of text and image, H heads, D head size. A `Grid` cuts the image tokens of S
into key blocks, and runs of key blocks into query blocks ("rows" of the map). Everything outside the grid, the text and
the few image tokens behind the last whole block, is always kept as keys and attends to everything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

KEY_BLOCK = {"cuda": 128}  # FlexAttention's own tile; elsewhere the finest block that costs nothing to gather
FINEST = 64
QUERY_BLOCK = {"cuda": 128}
# On the CPU, 256 queries by 64 keys beat every other pair tried (64 to 512 by 32 to 256), in speed and in error: the
# kernel wants long runs of queries, the map wants short blocks of keys.
LONGEST = 256
# Numbers of one sample in a tensor that is made and dropped in every call. A CPU's allocator gives larger ones back to
# the system, and every page of the next one is a fault: at 4,112 tokens that took longer than making the map. On an
# accelerator it is memory that counts: half a GB in fp32, where a video of 75,600 tokens would take 27.
HELD = {"cpu": 300_000}
HELD_ELSEWHERE = 1 << 27


@dataclass(frozen=True)
class Grid:
    """How a joint sequence is cut.

    Attributes:
        text, image: tokens of the two streams.
        key: tokens in a key block.
        group: key blocks in a query block; the last query block may have fewer.
        text_last: the text lies behind the image, not before it.
    """

    text: int
    image: int
    key: int
    group: int
    text_last: bool = False

    @property
    def tokens(self) -> int:
        """Length of the joint sequence."""
        return self.text + self.image

    @property
    def blocks(self) -> int:
        """Key blocks."""
        return self.image // self.key

    @property
    def rows(self) -> int:
        """Query blocks."""
        return -(-self.blocks // self.group)

    @property
    def start(self) -> int:
        """Position of the first key block."""
        return 0 if self.text_last else self.text

    @property
    def end(self) -> int:
        """Position behind the last key block."""
        return self.start + self.blocks * self.key

    @property
    def rest(self) -> int:
        """Tokens outside the blocks: always kept, always dense."""
        return self.tokens - self.blocks * self.key

    def kept(self, keep: float) -> int:
        """Key blocks kept per query block: ceil(keep * blocks), and never fewer than its own."""
        # The small slack undoes float dust: 0.07 * 100 is 7.000000000000001.
        return max(math.ceil(keep * self.blocks - 1e-9), min(self.group, self.blocks))

    def density(self, keep: float) -> float:
        """Share of the S x S attention scores that is computed."""
        if not self.blocks:
            return 1.0
        row = self.kept(keep) * self.key + self.rest
        return (self.rest * self.tokens + (self.tokens - self.rest) * row) / self.tokens**2


def in_parts(numbers: int, device: torch.device) -> int:
    """In how many parts a tensor of so many numbers of one sample is computed."""
    return max(1, -(-numbers // HELD.get(device.type, HELD_ELSEWHERE)))


def cut(image: int, text: int, block: int | None, device: str, text_last: bool = False) -> Grid:
    """The grid for a device. `block` is the length of a query block, None for the device's best.

    On CUDA both lengths are rounded up to multiples of 128.
    """
    key = KEY_BLOCK.get(device, FINEST)
    return Grid(text, image, key, -(-(block or QUERY_BLOCK.get(device, LONGEST)) // key), text_last)


def block_map(shares: torch.Tensor, grid: Grid, keep: float) -> torch.Tensor:
    """The key blocks with the largest shares of the softmax mass, equally many in every row, its own always. No sync.

    Args:
        shares: (B, H, rows, blocks) from one of `producers.PRODUCERS`.
        keep: share of the key blocks.

    Returns:
        (B, H, rows, blocks) boolean, True where a query block attends to a key block.
    """
    counts = torch.full(shares.shape[:3], grid.kept(keep), device=shares.device)
    return first_blocks(ranked(shares, grid), counts)


def mass_map(shares: torch.Tensor, grid: Grid, max_mass: float) -> torch.Tensor:
    """The fewest key blocks per row whose complement has at most `max_mass` of the softmax mass, its own always: the
    cut by cumulative mass of SpargeAttn (arXiv 2502.18137). Arguments and result as in `block_map`. No sync.
    """
    order = ranked(shares, grid)
    # Summed up from the smallest share on, so that small budgets are not lost in the rounding of sums near 1.
    left_out = F.pad(shares.gather(-1, order).flip(-1).cumsum(-1).flip(-1), (0, 1))
    return first_blocks(order, fewest(left_out, torch.arange(grid.blocks + 1, device=order.device), max_mass, grid))


def ranked(shares: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The key blocks (B, H, rows, blocks) of each row by number: its own, then the others by share, largest first."""
    own = _own(grid, shares.device)
    return shares.masked_fill(own, math.inf).argsort(dim=-1, descending=True, stable=True)


def fewest(losses: torch.Tensor, counts: torch.Tensor, most: float, grid: Grid) -> torch.Tensor:
    """How many blocks (B, H, rows) a row keeps so that what it loses is within a budget, also if it kept more.

    Args:
        losses: (B, H, rows, N), what a row loses that keeps the first `counts` blocks of its order.
        counts: (N,) ascending, the last one is all blocks.
    """
    # From the entry behind the last one that is over; what is not a number is not within either.
    entry = (torch.arange(1, len(counts) + 1, device=losses.device) * ~(losses <= most)).amax(-1)
    return torch.maximum(counts[entry.clamp(max=len(counts) - 1)], _own(grid, losses.device).sum(-1))


def first_blocks(order: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The map that keeps the first `counts` (...) blocks of an order (..., blocks)."""
    kept = torch.arange(order.shape[-1], device=order.device) < counts[..., None]
    return torch.empty_like(kept).scatter_(-1, order.expand_as(kept), kept)


def dropped_mass(shares: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Share of the softmax mass (B, H, rows) that a map leaves out, as the producer of `shares` has it."""
    return (shares * ~kept).sum(-1)


def computed_share(kept: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Share of the S x S attention scores that is computed by a map, (B, H) fp32."""
    lengths = torch.full((grid.rows,), grid.group * grid.key, device=kept.device)
    lengths[-1:] = grid.blocks * grid.key - (grid.rows - 1) * grid.group * grid.key
    inside = (kept.sum(-1) * lengths).sum(-1).float() * grid.key
    return (inside + grid.rest * (2 * grid.tokens - grid.rest)) / grid.tokens**2


def with_dense_heads(kept: torch.Tensor, grid: Grid, densest: float) -> torch.Tensor:
    """A map in which heads that would compute more than a share of their scores keep every block. No sync."""
    return kept | (computed_share(kept, grid) > densest)[..., None, None]


def keep_mask(kept: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The map as a boolean mask (B, H, S, S), True where a query sees a key: what the kernels compute, spelled out."""
    mask = torch.ones(*kept.shape[:2], grid.tokens, grid.tokens, dtype=torch.bool, device=kept.device)
    image = slice(grid.start, grid.end)
    fine = kept.repeat_interleave(grid.group, 2)[:, :, : grid.blocks]
    mask[:, :, image, image] = fine.repeat_interleave(grid.key, 2).repeat_interleave(grid.key, 3)
    return mask


def _own(grid: Grid, device: torch.device) -> torch.Tensor:
    """(rows, blocks), True where a key block lies in the query block."""
    blocks = torch.arange(grid.blocks, device=device)
    return blocks // grid.group == torch.arange(grid.rows, device=device)[:, None]
