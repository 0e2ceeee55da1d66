"""Block-sparse attention where no kernel skips blocks: a query block's keys and values are copied together."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..core.facts import machine_of
from .maps import Grid, keep_mask
from .products import Attend, exactly, pays, products_of


def gather_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kept: torch.Tensor,
    grid: Grid,
    lse: torch.Tensor | None = None,
    seen: torch.Tensor | None = None,
) -> torch.Tensor:
    """Block-sparse attention, one query block of one head after the other. Reads the map.

    Each attends to the keys of its blocks and to those outside all blocks, by matrix products where these are faster
    than torch's kernel.

    Args:
        q, k, v: (B, S, H, D).
        kept: (B, H, rows, blocks) boolean map; rows may keep different numbers of blocks.
        lse: (B, H, queries in blocks) float32; filled with the log-sum-exp of the scores each of them computed.
        seen: see `kernels.sparse_attention`.

    Returns:
        (B, S, H, D).
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return _differentiable(q, k, v, kept, grid, lse, seen)
    out, attend = torch.empty_like(q), _attention_of(q, k, grid)
    for sample in range(len(q)):
        outside = _outside(grid, None if seen is None else seen[sample], q.device)
        for head in range(q.shape[2]):
            keys = _Keys(k[sample, :, head], v[sample, :, head], outside, grid)
            for queries, blocks in _rows(kept[sample, head], grid):
                made, mass = attend(q[sample, queries, head], *keys.of(blocks), (sample, head, queries))
                out[sample, queries, head] = made
                if lse is not None and blocks is not None:
                    lse[sample, head, queries.start - grid.start : queries.stop - grid.start] = mass
    return out


def _attention_of(q: torch.Tensor, k: torch.Tensor, grid: Grid) -> Attend:
    """How a few queries attend to their keys."""
    if pays(machine_of(q.device), q.dtype):
        return products_of(q, k, grid.group * grid.key)
    return lambda query, keys, values, place: exactly(query, keys, values)


def _outside(grid: Grid, seen: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """Positions (N,) of the keys outside the blocks that may be attended to."""
    place = torch.arange(grid.tokens, device=device)
    found = torch.cat([place[: grid.start], place[grid.end :]])
    return found if seen is None else found[seen[found]]


def _rows(kept: torch.Tensor, grid: Grid) -> list[tuple[slice, torch.Tensor | None]]:
    """Positions of each query block and the numbers of its key blocks; None stands for all keys.

    Queries outside the blocks come in runs that are no longer than a query block.

    Args:
        kept: (rows, blocks) of one head.
    """
    block = grid.group * grid.key
    starts = range(grid.start, grid.end, block)
    found: list[tuple[slice, torch.Tensor | None]] = [
        (slice(start, min(start + block, grid.end)), row.nonzero()[:, 0])
        for start, row in zip(starts, kept, strict=True)
    ]
    outside = (0, grid.start), (grid.end, grid.tokens)
    runs = [(start, min(start + block, end)) for first, end in outside for start in range(first, end, block)]
    return found + [(slice(*run), None) for run in runs]


class _Keys:
    """Keys and values (S, D) of one head, and room in which some of them are copied together."""

    def __init__(self, k: torch.Tensor, v: torch.Tensor, outside: torch.Tensor, grid: Grid):
        self._keys, self._values, self._grid, self._first = k.contiguous(), v.contiguous(), grid, len(outside)
        self._rooms = [x.new_empty(self._first + grid.blocks * grid.key, x.shape[1]) for x in (k, v)]
        for room, x in zip(self._rooms, (k, v), strict=True):
            room[: self._first] = x[outside]

    def of(self, blocks: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of these blocks, behind those outside all blocks; valid until the next call."""
        whole = blocks is None or len(blocks) == self._grid.blocks
        if whole and self._first == self._grid.rest:
            return self._keys, self._values
        chosen = torch.arange(self._grid.blocks, device=self._keys.device) if blocks is None else blocks
        return self._copied(0, self._keys, chosen), self._copied(1, self._values, chosen)

    def _copied(self, number: int, x: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        grid, end = self._grid, self._first + len(blocks) * self._grid.key
        size = grid.key * x.shape[1]
        room = self._rooms[number]
        # A block is one row here: copied whole.
        rows = x[grid.start : grid.end].view(grid.blocks, size)
        torch.index_select(rows, 0, blocks, out=room[self._first : end].view(len(blocks), size))
        return room[:end]


def _differentiable(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kept: torch.Tensor,
    grid: Grid,
    lse: torch.Tensor | None,
    seen: torch.Tensor | None,
) -> torch.Tensor:
    """The same with the map as a mask, which computes every score."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = keep_mask(kept, grid) if seen is None else keep_mask(kept, grid) & seen[:, None, None]
    if lse is not None:
        scores = (q @ k.mT).float() / q.shape[-1] ** 0.5
        lse.copy_(scores.masked_fill(~mask, -torch.inf).logsumexp(-1)[:, :, grid.start : grid.end])
    # A copy: the remainder is added in place, and the kernel's own output is needed for its gradient.
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).clone()
