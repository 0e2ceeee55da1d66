"""Block-sparse attention by FlexAttention, for CUDA."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .maps import Grid


@cache
def _compiled() -> Callable[..., torch.Tensor]:
    """FlexAttention computes densely unless it is compiled."""
    return torch.compile(flex_attention, dynamic=False)


def flex_sparse(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    indices: torch.Tensor,
    grid: Grid,
    seen: torch.Tensor | None = None,
) -> torch.Tensor:
    """Same contract as `gather_attention`."""
    return flex_with(_compiled(), q, k, v, indices, grid, seen)


def flex_with(
    attend: Callable[..., torch.Tensor],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    indices: torch.Tensor,
    grid: Grid,
    seen: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of (B, S, H, D) tensors through `attend`, which is `flex_attention`, compiled or not."""
    ordered = [_grid_first(x, grid).transpose(1, 2) for x in (q, k, v)]
    mask = flex_mask(indices, grid, None if seen is None else _grid_first(seen, grid))
    out = attend(*ordered, block_mask=mask).transpose(1, 2)
    blocks, before, behind = out.split([grid.end - grid.start, grid.start, grid.tokens - grid.end], 1)
    return torch.cat([before, blocks, behind], 1)


def flex_mask(indices: torch.Tensor, grid: Grid, seen: torch.Tensor | None = None) -> BlockMask:
    """The map for a sequence whose blocks come first, so that they fall on FlexAttention's own tiles.

    The block lists are what the compiled kernel skips by; eager FlexAttention ignores them and would attend to
    everything, so the mask function looks the same map up.

    Args:
        seen: (B, S) of the sequence in that order; False only behind the blocks.
    """
    tiles = -(-grid.tokens // grid.key)
    fine = indices.repeat_interleave(grid.group, 2)[:, :, : grid.blocks]
    keep = torch.zeros(*indices.shape[:2], tiles, tiles, dtype=torch.bool, device=indices.device)
    keep[:, :, : grid.blocks].scatter_(-1, fine, True)
    keep[:, :, grid.blocks :] = True
    keep[..., grid.blocks :] = True

    def looked_up(b: torch.Tensor, h: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        kept = keep[b, h, query // grid.key, key // grid.key]
        return kept if seen is None else kept & seen[b, key]

    # Inside a full tile no score is masked; those behind the blocks are partial ones where some keys are hidden.
    partial = torch.zeros_like(keep)
    if seen is not None:
        partial[..., grid.blocks :] = True
    counts, orders = zip(*(_listed(tiles) for tiles in (partial, keep & ~partial)), strict=True)
    return BlockMask.from_kv_blocks(
        kv_num_blocks=counts[0],
        kv_indices=orders[0],
        full_kv_num_blocks=counts[1],
        full_kv_indices=orders[1],
        BLOCK_SIZE=grid.key,
        mask_mod=looked_up,
        seq_lengths=(grid.tokens, grid.tokens),
    )


def _listed(tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many tiles of each row, and which: those first, in order."""
    return tiles.sum(-1, dtype=torch.int32), tiles.int().argsort(dim=-1, descending=True, stable=True).int()


def _grid_first(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    return torch.cat([x[:, grid.start : grid.end], x[:, : grid.start], x[:, grid.end :]], 1)
