"""Attention that skips the blocks a map leaves out. Tensors are (B, S, H, D), as diffusers keeps them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .flex import Flex
from .gathered import gather_attention
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
