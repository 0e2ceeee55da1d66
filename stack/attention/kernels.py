"""Attention that skips the blocks a map leaves out. Tensors are (B, S, H, D), as diffusers keeps them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .flex import Flex
from .maps import Grid
from .remainder import add_remainder


def sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    indices: torch.Tensor,
    grid: Grid,
    flex: Flex,
    seen: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend by a map, and add the pooled remainder of the dropped blocks. (B, S, H, D) in and out.

    CUDA: FlexAttention. Elsewhere: gathered keys. Both compute the same.

    Args:
        indices: (B, H, rows, kept) from `block_map`.
        flex: what CUDA has compiled so far.
        seen: (B, S), False at keys that nobody may attend to; they lie outside the blocks. None where all are seen.
    """
    if q.device.type == "cuda":
        return flex(q, k, v, indices, grid, seen)
    lse = q.new_empty(q.shape[0], q.shape[2], grid.end - grid.start, dtype=torch.float32)
    out = gather_attention(q, k, v, indices, grid, lse, seen)
    return add_remainder(out, lse, q, k, v, indices, grid)


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
    """Plain attention of (B, S, H, D) tensors."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = None if seen is None else seen[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def gather_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    indices: torch.Tensor,
    grid: Grid,
    lse: torch.Tensor | None = None,
    seen: torch.Tensor | None = None,
) -> torch.Tensor:
    """Block-sparse attention, one query block after the other: gather its keys and values, attend to them alone.

    Args:
        q, k, v: (B, S, H, D).
        indices: (B, H, rows, kept) from `block_map`.
        lse: (B, H, queries in blocks) float32; filled with the log-sum-exp of the scores each of them computed.
        seen: see `sparse_attention`.

    Returns:
        (B, S, H, D).
    """
    batch, _, heads, dim = q.shape
    rows = _Rows(indices, grid, batch, heads)
    bias = None if seen is None else _bias(seen, indices.shape[-1] * grid.key, grid, q.dtype)
    flat_k, flat_v = k.reshape(-1, dim), v.reshape(-1, dim)
    out = torch.empty_like(q)
    for i in range(grid.rows):
        picked = rows(i)
        keys, values = (x.index_select(0, picked).view(batch, heads, -1, dim) for x in (flat_k, flat_v))
        start = grid.start + i * grid.group * grid.key
        stop = min(start + grid.group * grid.key, grid.end)
        query = q[:, start:stop].transpose(1, 2)
        part, mass = _attend(query, keys, values, bias)
        out[:, start:stop] = part.transpose(1, 2)
        if lse is not None:
            lse[:, :, start - grid.start : stop - grid.start] = mass
    if grid.rest:
        first = grid.start
        outside = dense(torch.cat([q[:, :first], q[:, grid.end :]], 1), k, v, seen)
        out[:, :first], out[:, grid.end :] = outside[:, :first], outside[:, first:]
    return out


def _bias(seen: torch.Tensor, kept: int, grid: Grid, dtype: torch.dtype) -> torch.Tensor:
    """What is added to the scores (B, 1, 1, kept + rest) of a query block, whose keys outside the blocks come last."""
    outside = torch.cat([seen[:, : grid.start], seen[:, grid.end :]], 1)
    bias = torch.zeros(len(seen), kept + grid.rest, dtype=dtype, device=seen.device)
    bias[:, kept:].masked_fill_(~outside, -math.inf)
    return bias[:, None, None]


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of (B, H, N, D) tensors and the log-sum-exp (B, H, N) of its scores."""
    if q.device.type == "cpu" and not q.requires_grad:
        # The kernel behind scaled_dot_product_attention, called by its own name: the public one keeps this to itself.
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias)
    scores = (q @ k.mT).float() / q.shape[-1] ** 0.5 + (0 if bias is None else bias)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias), scores.logsumexp(-1)


class _Rows:
    """Rows of the flattened (B * S * H, D) keys that a query block sees, in (B, H, token) order."""

    def __init__(self, indices: torch.Tensor, grid: Grid, batch: int, heads: int):
        def count(stop: int) -> torch.Tensor:
            return torch.arange(stop, device=indices.device)

        # Token t of head h in sample b is row (b S + t) H + h: no copy into another layout is needed.
        offset = (count(batch)[:, None] * grid.tokens * heads + count(heads))[..., None]
        rest = torch.cat([count(grid.start), count(grid.tokens)[grid.end :]])
        self._rest = rest * heads + offset
        self._first = (grid.start + indices * grid.key) * heads + offset[..., None]
        self._within = count(grid.key) * heads

    def __call__(self, i: int) -> torch.Tensor:
        blocks = (self._first[:, :, i, :, None] + self._within).flatten(2)
        return torch.cat([blocks, self._rest], -1).flatten()
