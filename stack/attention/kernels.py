"""Attention that skips the blocks a map leaves out. Tensors are (B, S, H, D), as diffusers keeps them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .flex import Flex
from .maps import Grid
from .remainder import add_remainder


def sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kept: torch.Tensor,
    grid: Grid,
    flex: Flex,
    seen: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend by a map, and add the pooled remainder of the dropped blocks. (B, S, H, D) in and out.

    CUDA: FlexAttention. Elsewhere: gathered keys. Both compute the same.

    Args:
        kept: (B, H, rows, blocks) boolean map; rows may keep different numbers of blocks.
        flex: what CUDA has compiled so far.
        seen: (B, S), False at keys that nobody may attend to; they lie outside the blocks. None where all are seen.
    """
    if q.device.type == "cuda":
        return flex(q, k, v, kept, grid, seen)
    lse = q.new_empty(q.shape[0], q.shape[2], grid.end - grid.start, dtype=torch.float32)
    out = gather_attention(q, k, v, kept, grid, lse, seen)
    return add_remainder(out, lse, q, k, v, kept, grid)


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
    """Plain attention of (B, S, H, D) tensors."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = None if seen is None else seen[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def gather_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kept: torch.Tensor,
    grid: Grid,
    lse: torch.Tensor | None = None,
    seen: torch.Tensor | None = None,
) -> torch.Tensor:
    """Block-sparse attention, one query block after the other: gather its keys and values, attend to them alone.

    Args:
        q, k, v: (B, S, H, D).
        kept: (B, H, rows, blocks) boolean map; rows may keep different numbers of blocks.
        lse: (B, H, queries in blocks) float32; filled with the log-sum-exp of the scores each of them computed.
        seen: see `sparse_attention`.

    Returns:
        (B, S, H, D).
    """
    dim = q.shape[-1]
    bias = None if seen is None else _bias(torch.cat([seen[:, : grid.start], seen[:, grid.end :]], 1), q.dtype)
    flat_k, flat_v = k.reshape(-1, dim), v.reshape(-1, dim)
    out = torch.empty_like(q)
    _whole_heads(q, k, v, kept, grid, out, lse, seen)
    for part in _parts(kept, grid):
        keys, values = (
            x.index_select(0, part.keys.flatten()).view(*part.keys.shape, dim)[:, None] for x in (flat_k, flat_v)
        )
        query = q[part.sample, part.queries, part.head][:, None]
        # Keys outside the blocks come last in every part.
        hidden = None if bias is None else F.pad(bias[part.sample], (keys.shape[2] - bias.shape[-1], 0))
        attended, mass = _attend(query, keys, values, hidden)
        out[part.sample, part.queries, part.head] = attended[:, 0]
        if lse is not None:
            there = slice(part.queries.start - grid.start, part.queries.stop - grid.start)
            lse[part.sample, part.head, there] = mass[:, 0].to(lse.dtype)
    if grid.rest:
        first = grid.start
        outside = dense(torch.cat([q[:, :first], q[:, grid.end :]], 1), k, v, seen)
        out[:, :first], out[:, grid.end :] = outside[:, :first], outside[:, first:]
    return out


def _whole_heads(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kept: torch.Tensor,
    grid: Grid,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    seen: torch.Tensor | None,
) -> None:
    """Heads that keep every block, in one dense call: nothing is gathered."""
    sample, head = kept.flatten(2).all(-1).nonzero(as_tuple=True)
    if not len(sample):
        return
    query, keys, values = (x.transpose(1, 2)[sample, head][:, None] for x in (q, k, v))
    attended, mass = _attend(query, keys, values, None if seen is None else _bias(seen[sample], q.dtype))
    out[sample, :, head] = attended[:, 0]
    if lse is not None:
        lse[sample, head] = mass[:, 0, grid.start : grid.end].to(lse.dtype)


def _bias(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to the scores (B, 1, 1, keys) of keys (B, keys)."""
    bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -math.inf)
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


@dataclass(frozen=True)
class _Part:
    """Queries that are computed in one call: a query block of all the heads that keep as many blocks there.

    Attributes:
        sample, head: (N,) which ones.
        queries: positions in the sequence.
        keys: (N, kept + rest) rows of the flattened (B * S * H, D) keys that they see.
    """

    sample: torch.Tensor
    head: torch.Tensor
    queries: slice
    keys: torch.Tensor


def _parts(kept: torch.Tensor, grid: Grid) -> Iterator[_Part]:
    """All queries in blocks, of heads that drop some. Reads the lengths of the rows."""
    heads = kept.shape[1]

    def count(stop: int) -> torch.Tensor:
        return torch.arange(stop, device=kept.device)

    within = count(grid.key)
    rest = torch.cat([count(grid.start), count(grid.tokens)[grid.end :]])
    blocks = (~kept).to(torch.int8).argsort(dim=-1, stable=True).flatten(0, 1)
    partial = (~kept).flatten(2).any(-1).flatten().tolist()
    for row, lengths in enumerate(kept.sum(-1).flatten(0, 1).T.tolist()):
        start = grid.start + row * grid.group * grid.key
        for length in sorted({n for n, some in zip(lengths, partial, strict=True) if some}):
            heads_of = [i for i, n in enumerate(lengths) if n == length and partial[i]]
            chosen = torch.tensor(heads_of, device=kept.device)
            sample, head = chosen // heads, chosen % heads
            tokens = grid.start + blocks[chosen, row, :length, None] * grid.key + within
            tokens = torch.cat([tokens.flatten(1), rest.expand(len(chosen), -1)], -1)
            # Token t of head h in sample b is row (b S + t) H + h: no copy into another layout is needed.
            keys = (sample[:, None] * grid.tokens + tokens) * heads + head[:, None]
            yield _Part(sample, head, slice(start, min(start + grid.group * grid.key, grid.end)), keys)
