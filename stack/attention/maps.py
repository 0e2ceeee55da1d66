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


def cut(image: int, text: int, block: int | None, device: str, text_last: bool = False) -> Grid:
    """The grid for a device. `block` is the length of a query block, None for the device's best.

    On CUDA both lengths are rounded up to multiples of 128.
    """
    key = KEY_BLOCK.get(device, FINEST)
    return Grid(text, image, key, -(-(block or QUERY_BLOCK.get(device, LONGEST)) // key), text_last)


def block_map(q: torch.Tensor, k: torch.Tensor, grid: Grid, keep: float) -> torch.Tensor:
    """The key blocks with the largest pooled scores, per sample, head and query block (training-free, as Jenga's and
    SpargeAttn's first stage: arXiv 2505.16864, 2502.18137), always with the query block's own.

    Nothing is pooled over the batch or over heads, and scores are fp32, so that neither batching nor precision
    changes what is kept. No host sync.

    Args:
        q, k: (B, S, H, D), rotary positions applied.

    Returns:
        (B, H, rows, kept) indices of key blocks, ascending.
    """
    image = slice(grid.start, grid.end)
    pooled_q, pooled_k = (x[:, image].unflatten(1, (-1, grid.key)).mean(2, dtype=torch.float32) for x in (q, k))
    missing = grid.rows * grid.group - grid.blocks
    # A sum instead of a mean over the group: the ranking within a row is the same, also for a short last group.
    pooled_q = F.pad(pooled_q, (0, 0, 0, 0, 0, missing)).unflatten(1, (-1, grid.group)).sum(2)
    scores = pooled_q.permute(0, 2, 1, 3) @ pooled_k.permute(0, 2, 3, 1)
    blocks = torch.arange(grid.blocks, device=q.device)
    own = blocks // grid.group == torch.arange(grid.rows, device=q.device)[:, None]
    return scores.masked_fill(own, math.inf).topk(grid.kept(keep), dim=-1).indices.sort(-1).values


def keep_mask(indices: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The map as a boolean mask (B, H, S, S), True where a query sees a key: what the kernels compute, spelled out."""
    batch, heads = indices.shape[:2]
    rows = torch.zeros(batch, heads, grid.rows, grid.blocks, dtype=torch.bool, device=indices.device)
    rows.scatter_(-1, indices, True)
    fine = rows.repeat_interleave(grid.group, 2)[:, :, : grid.blocks]
    mask = torch.ones(batch, heads, grid.tokens, grid.tokens, dtype=torch.bool, device=indices.device)
    image = slice(grid.start, grid.end)
    mask[:, :, image, image] = fine.repeat_interleave(grid.key, 2).repeat_interleave(grid.key, 3)
    return mask
