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


def flex_sparse(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, indices: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Same contract as `gather_attention`."""
    return flex_with(_compiled(), q, k, v, indices, grid)


def flex_with(
    attend: Callable[..., torch.Tensor],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    indices: torch.Tensor,
    grid: Grid,
) -> torch.Tensor:
    """Attention of (B, S, H, D) tensors through `attend`, which is `flex_attention`, compiled or not."""
    ordered = [_grid_first(x, grid).transpose(1, 2) for x in (q, k, v)]
    out = attend(*ordered, block_mask=flex_mask(indices, grid)).transpose(1, 2)
    blocks, text, tail = out.split([grid.end - grid.text, grid.text, grid.tokens - grid.end], 1)
    return torch.cat([text, blocks, tail], 1)


def flex_mask(indices: torch.Tensor, grid: Grid) -> BlockMask:
    """The map for a sequence whose blocks come first, so that they fall on FlexAttention's own tiles.

    The block lists are what the compiled kernel skips by; eager FlexAttention ignores them and would attend to
    everything, so the mask function looks the same map up.
    """
    tiles = -(-grid.tokens // grid.key)
    fine = indices.repeat_interleave(grid.group, 2)[:, :, : grid.blocks]
    keep = torch.zeros(*indices.shape[:2], tiles, tiles, dtype=torch.bool, device=indices.device)
    keep[:, :, : grid.blocks].scatter_(-1, fine, True)
    keep[:, :, grid.blocks :] = True
    keep[..., grid.blocks :] = True

    def looked_up(b: torch.Tensor, h: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return keep[b, h, query // grid.key, key // grid.key]

    # Kept tiles first, in order. All are full tiles: no score inside one is masked, so the partial lists stay empty.
    order = keep.int().argsort(dim=-1, descending=True, stable=True).int()
    count = keep.sum(-1, dtype=torch.int32)
    return BlockMask.from_kv_blocks(
        kv_num_blocks=torch.zeros_like(count),
        kv_indices=torch.zeros_like(order),
        full_kv_num_blocks=count,
        full_kv_indices=order,
        BLOCK_SIZE=grid.key,
        mask_mod=looked_up,
        seq_lengths=(grid.tokens, grid.tokens),
    )


def _grid_first(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    return torch.cat([x[:, grid.text : grid.end], x[:, : grid.text], x[:, grid.end :]], 1)
