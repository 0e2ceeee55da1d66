"""One attention call by back end: what it takes, and how far it is off."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from common import Target, interleaved

from stack.attention.flex import Flex
from stack.attention.kernels import sparse_attention
from stack.attention.maps import Grid, cut
from stack.attention.policy_map import policy_map
from stack.attention.products import products
from stack.attention.sage import sage_attention, unfit_size
from stack.attention.sparsity import SparsityPolicy

TEXT, HEADS = 16, 3
KEEPS = (0.75, 0.5, 0.25)
SMOOTH = 64  # tokens over which fields are alike
SHARP = 24.0  # of the queries, over the root of the head size: scores are as sharp at any size
LOOKED_AT = 256  # queries whose outputs are computed in float64
ASKED = {0.5: 1.6, 0.25: 2.8}  # speedups over dense attention at 4,096 tokens, the map included
MAP = 0.03  # of dense attention's time
Row = dict[str, Any]


def fields(tokens: int, size: int) -> list[torch.Tensor]:
    """Queries, keys and values (1, S, H, D) in bf16: random fields that are alike over some tokens, scores sharp."""
    generator = torch.Generator().manual_seed(tokens + size)
    shape = (1, HEADS * size, TEXT + tokens + SMOOTH - 1)
    found = [F.avg_pool1d(torch.randn(shape, generator=generator), SMOOTH, 1) * math.sqrt(SMOOTH) for _ in range(3)]
    q, k, v = (x.unflatten(1, (HEADS, size)).permute(0, 3, 1, 2) for x in found)
    return [x.to(torch.bfloat16).contiguous() for x in (q * SHARP / size**0.5, (q + k) / 2**0.5, v)]


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Outputs (B, n, H, D) of these queries in float64."""
    query, keys, values = (x.double().transpose(1, 2) for x in (q[:, at], k, v))
    return ((query @ keys.mT / q.shape[-1] ** 0.5).softmax(-1) @ values).transpose(1, 2)


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Torch's, of tensors that lie as it likes them best."""
    return F.scaled_dot_product_attention(q, k, v)


def call_rows(tokens: int, size: int) -> Iterator[Row]:
    """One row per back end and kept share, time also over dense products; 8-bit attention has no kernel on a CPU."""
    q, k, v = fields(tokens, size)
    grid = cut(tokens, TEXT, None, "cpu")
    heads_first = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
    maps = {keep: _map(keep, q, k, v, grid) for keep in KEEPS}
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "dense": lambda: dense(*heads_first).transpose(1, 2),
        "products": lambda: products(q, k, v),
        "map": lambda: _map(0.5, q, k, v, grid),
    }
    runs |= {f"{keep}": lambda m=kept: sparse_attention(q, k, v, m, grid, Flex()) for keep, kept in maps.items()}
    seconds = interleaved(runs, 5, clock=time.process_time)
    at = torch.linspace(0, grid.tokens - 1, LOOKED_AT).long()
    right = exact(q, k, v, at)

    def row(backend: str, made: torch.Tensor, keep: float = 1.0, taken: float | None = None) -> Row:
        off = float((made[:, at].double() - right).norm() / right.norm())
        return {
            "tokens": tokens, "head": size, "back end": backend, "keep": keep, "work": _work(grid, keep),
            "ms": taken and 1000 * taken, "speedup": taken and seconds["dense"] / taken,
            "over products": taken and seconds["products"] / taken,
            "map, of dense": seconds["map"] / seconds["dense"] if keep < 1 else None, "error": off,
        }  # fmt: skip

    yield row("dense", runs["dense"](), taken=seconds["dense"])
    yield row("products", runs["products"](), taken=seconds["products"])
    if not unfit_size(grid.tokens, size):
        yield row("8-bit", sage_attention(q, k, v))
    for keep in KEEPS:
        yield row("block-sparse", runs[f"{keep}"](), keep, seconds[f"{keep}"] + seconds["map"])


def _map(keep: float, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: Grid) -> torch.Tensor:
    return policy_map(SparsityPolicy(keep), q, k, v, grid, None).kept


def _work(grid: Grid, keep: float) -> float:
    return grid.density(keep) if keep < 1 else 1.0


def call_targets(rows: list[Row]) -> list[Target]:
    """What is asked at 4,096 tokens and heads of 64."""
    found = []
    for row in rows:
        if (row["tokens"], row["head"], row["back end"]) == (4096, 64, "block-sparse") and row["keep"] in ASKED:
            which = f"4,096 tokens, {row['keep']:.0%} kept"
            found.append(Target(f"{which}: speedup over dense, map included", row["speedup"], ASKED[row["keep"]]))
            found.append(Target(f"{which}: map over dense", row["map, of dense"], MAP, "<="))
    return found
