"""Attention by the map that is made from its own queries and keys."""

from __future__ import annotations

import torch

from stack.attention import kernels, maps
from stack.attention.flex import Flex, flex_with_tables, kept_tiles, on_tiles
from stack.attention.maps import Grid
from stack.attention.producers import PRODUCERS


def block_map(q: torch.Tensor, k: torch.Tensor, grid: Grid, keep: float, producer: str = "pooled") -> torch.Tensor:
    """(B, H, rows, blocks), a fixed share of the key blocks."""
    return maps.block_map(PRODUCERS[producer](q, k, grid), grid, keep)


def sparse_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: Grid, keep: float, seen: torch.Tensor | None = None
) -> torch.Tensor:
    """(B, S, H, D) in and out."""
    return kernels.sparse_attention(q, k, v, block_map(q, k, grid, keep), grid, Flex(), seen)


def flex_uncompiled(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kept: torch.Tensor,
    grid: Grid,
    seen: torch.Tensor | None = None,
    remainder: bool = True,
) -> torch.Tensor:
    """What `Flex` compiles, run as it is. (B, S, H, D) in and out."""
    ordered = None if seen is None else on_tiles(seen, grid)
    return flex_with_tables(q, k, v, kept, kept_tiles(kept, grid), ordered, grid, remainder)
