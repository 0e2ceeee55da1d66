"""Attention that skips the blocks a map leaves out. Tensors are (B, S, H, D), as diffusers keeps them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .flex import flex_sparse
from .maps import Grid, block_map


def sparse_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: Grid, keep: float) -> torch.Tensor:
    """Make the map and attend by it: FlexAttention on CUDA, gathered keys elsewhere. (B, S, H, D) in and out."""
    indices = block_map(q, k, grid, keep)
    kernel = flex_sparse if q.device.type == "cuda" else gather_attention
    return kernel(q, k, v, indices, grid)


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Plain attention of (B, S, H, D) tensors."""
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def gather_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, indices: torch.Tensor, grid: Grid
) -> torch.Tensor:
    """Block-sparse attention, one query block after the other: gather its keys and values, attend to them alone.

    Args:
        q, k, v: (B, S, H, D).
        indices: (B, H, rows, kept) from `block_map`.

    Returns:
        (B, S, H, D).
    """
    batch, _, heads, dim = q.shape
    rows = _Rows(indices, grid, batch, heads)
    flat_k, flat_v = k.reshape(-1, dim), v.reshape(-1, dim)
    out = torch.empty_like(q)
    for i in range(grid.rows):
        picked = rows(i)
        keys, values = (x.index_select(0, picked).view(batch, heads, -1, dim) for x in (flat_k, flat_v))
        start = grid.text + i * grid.group * grid.key
        stop = min(start + grid.group * grid.key, grid.end)
        query = q[:, start:stop].transpose(1, 2)
        out[:, start:stop] = F.scaled_dot_product_attention(query, keys, values).transpose(1, 2)
    if grid.rest:
        outside = dense(torch.cat([q[:, : grid.text], q[:, grid.end :]], 1), k, v)
        out[:, : grid.text], out[:, grid.end :] = outside[:, : grid.text], outside[:, grid.text :]
    return out


class _Rows:
    """Rows of the flattened (B * S * H, D) keys that a query block sees, in (B, H, token) order."""

    def __init__(self, indices: torch.Tensor, grid: Grid, batch: int, heads: int):
        def count(stop: int) -> torch.Tensor:
            return torch.arange(stop, device=indices.device)

        # Token t of head h in sample b is row (b S + t) H + h: no copy into another layout is needed.
        offset = (count(batch)[:, None] * grid.tokens * heads + count(heads))[..., None]
        rest = torch.cat([count(grid.text), count(grid.tokens)[grid.end :]])
        self._rest = rest * heads + offset
        self._first = (grid.text + indices * grid.key) * heads + offset[..., None]
        self._within = count(grid.key) * heads

    def __call__(self, i: int) -> torch.Tensor:
        blocks = (self._first[:, :, i, :, None] + self._within).flatten(2)
        return torch.cat([blocks, self._rest], -1).flatten()
