"""Attention that skips the blocks a map leaves out. Tensors are (B, S, H, D), as diffusers keeps them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .flex import flex_sparse
from .maps import Grid, block_map
from .remainder import add_remainder


def sparse_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: Grid, keep: float) -> torch.Tensor:
    """Make the map and attend by it. (B, S, H, D) in and out.

    CUDA: FlexAttention. Elsewhere: gathered keys, and the pooled remainder of the dropped blocks.
    """
    indices = block_map(q, k, grid, keep)
    if q.device.type == "cuda":
        return flex_sparse(q, k, v, indices, grid)
    lse = q.new_empty(q.shape[0], q.shape[2], grid.end - grid.text, dtype=torch.float32)
    out = gather_attention(q, k, v, indices, grid, lse)
    return add_remainder(out, lse, q, k, v, indices, grid)


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Plain attention of (B, S, H, D) tensors."""
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def gather_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    indices: torch.Tensor,
    grid: Grid,
    lse: torch.Tensor | None = None,
) -> torch.Tensor:
    """Block-sparse attention, one query block after the other: gather its keys and values, attend to them alone.

    Args:
        q, k, v: (B, S, H, D).
        indices: (B, H, rows, kept) from `block_map`.
        lse: (B, H, queries in blocks) float32; filled with the log-sum-exp of the scores each of them computed.

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
        part, mass = _attend(query, keys, values)
        out[:, start:stop] = part.transpose(1, 2)
        if lse is not None:
            lse[:, :, start - grid.text : stop - grid.text] = mass
    if grid.rest:
        outside = dense(torch.cat([q[:, : grid.text], q[:, grid.end :]], 1), k, v)
        out[:, : grid.text], out[:, grid.end :] = outside[:, : grid.text], outside[:, grid.text :]
    return out


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of (B, H, N, D) tensors and the log-sum-exp (B, H, N) of its scores."""
    if q.device.type == "cpu" and not q.requires_grad:
        # The kernel behind scaled_dot_product_attention, called by its own name: the public one keeps this to itself.
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    scores = (q @ k.mT).float() / q.shape[-1] ** 0.5
    return F.scaled_dot_product_attention(q, k, v), scores.logsumexp(-1)


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
