"""Who says which key blocks a query block needs: shares of its softmax mass, exact on a few queries or guessed.

Each producer is a pure function of queries and keys (B, S, H, D), rotary positions applied, and a grid. It returns
(B, H, rows, blocks) fp32 shares of the mass of a query block: at least 0, and at most 1 in a row together with what
lies outside the blocks. Nothing is pooled over the batch or over heads, and softmax weights are fp32, so that batching
does not change a share. No host sync. `seen` (B, S) is False at keys outside the blocks that nobody may attend to;
`places` (B, S, H, axes) is where tokens lie in the picture or video, None where that is not known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F

from .maps import Grid, in_parts

Maybe = torch.Tensor | None


class Producer(Protocol):
    """One of the functions of this file."""

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, grid: Grid, seen: Maybe = None, places: Maybe = None
    ) -> torch.Tensor:
        """Shares (B, H, rows, blocks)."""
        ...


MEASURED = "sampled"  # whose shares are exact for the queries it looks at; the others guess
SAMPLE = 32  # of so many queries one is looked at,
IN_BLOCK = 4  # but no fewer of a query block: with 2 of 64, shapes-dit is 1 to 7 dB worse than with 4
# Which one goes up by this from sample to sample, so that samples spread over the columns of a picture: of every 32nd
# query of a row-major picture of 32 columns all would be in one column.
STAGGER = 13
SPREAD = 16  # values of a block that its spread is measured on
TILE = 16  # of the antidiagonals; XAttention's coarser choice


@dataclass(frozen=True)
class Sample:
    """The queries in blocks that are looked at, equally many of every key block.

    Attributes:
        at: (n,) their positions in the sequence.
        scores: (B, H, n, S) fp32, over all keys.
    """

    at: torch.Tensor
    scores: torch.Tensor

    @cached_property
    def weights(self) -> torch.Tensor:
        """Their softmax weights (B, H, n, S)."""
        return self.scores.softmax(-1)

    @property
    def lse(self) -> torch.Tensor:
        """The log-sum-exp of their scores (B, H, n, 1), from the largest weight."""
        return self.scores.amax(-1, keepdim=True) - self.weights.amax(-1, keepdim=True).log()

    def shares(self, grid: Grid) -> torch.Tensor:
        """Shares (B, H, rows, blocks) of their mass, averaged over the query block."""
        return _by_row(_by_block(self.weights[..., grid.start : grid.end], grid), grid)


def sample_of(q: torch.Tensor, k: torch.Tensor, grid: Grid, seen: torch.Tensor | None = None) -> Sample:
    """One query in 32, against all keys."""
    # In fp32: what a budget is held to is measured on them, and bf16 rounds a score of 100 by a quarter.
    return _sample(q.float(), k.float(), _sampled_at(grid, q.device), seen)


def held_out(q: torch.Tensor, k: torch.Tensor, grid: Grid, seen: torch.Tensor | None = None) -> Sample:
    """One query in 64, or one of a key block, others than those that `sampled` looks at; scores in their own dtype."""
    at = _sampled_at(grid, q.device, held_out=True)
    return _sample(q, k, at if len(at) % (2 * max(1, grid.blocks)) else at[::2], seen)


def _sample(q: torch.Tensor, k: torch.Tensor, at: torch.Tensor, seen: torch.Tensor | None) -> Sample:
    scores = _products(q[:, at].transpose(1, 2), k).float().div_(math.sqrt(q.shape[-1]))
    return Sample(at, _hidden(scores, seen))


def sampled(q: torch.Tensor, k: torch.Tensor, grid: Grid, seen: Maybe = None, places: Maybe = None) -> torch.Tensor:
    """Exact shares of one query in 32, averaged over the query block (choice by sampled queries: SVG, 2502.01776).

    As `Sample.shares` has them, but scores have the dtype of the queries; a few queries at a time.
    """
    at = _sampled_at(grid, q.device)

    def mass(query: torch.Tensor) -> torch.Tensor:
        scores = _hidden(_products(query, k), seen).float()
        # Softmax in place, divided once its weights are added up: a CPU would take longer to get the memory.
        weights = scores.sub_(scores.amax(-1, keepdim=True)).exp_()
        return _by_block(weights[..., grid.start : grid.end], grid) / weights.sum(-1, keepdim=True)

    query = q[:, at].transpose(1, 2) / math.sqrt(q.shape[-1])
    parts = query.chunk(in_parts(query[0, ..., 0].numel() * grid.tokens, q.device), 2)
    return _by_row(torch.cat([mass(part) for part in parts], 2), grid)


def _products(query: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Scalar products (B, H, n, S) of queries (B, H, n, D) with keys (B, S, H, D)."""
    if query.device.type != "cpu" or query.requires_grad or k.requires_grad:
        return query @ k.permute(0, 2, 3, 1)
    # One head after the other: a CPU's product of many matrices copies keys that lie like this, and takes five times
    # as long.
    out = query.new_empty(*query.shape[:3], k.shape[1])
    for sample in range(len(query)):
        for head in range(query.shape[1]):
            torch.mm(query[sample, head], k[sample, :, head].T, out=out[sample, head])
    return out


def few_heads(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: Grid
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Queries, keys and values (B, S, H, D) of so many heads at a time as a CPU samples at once; else of all."""
    parts = in_parts(q.shape[2] * grid.blocks * (grid.key // _every(grid)) * grid.tokens, q.device)
    yield from zip(q.chunk(parts, 2), k.chunk(parts, 2), v.chunk(parts, 2), strict=True)


def _every(grid: Grid) -> int:
    """Of how many queries one is looked at: as many of every key block."""
    count = min(grid.key, max(1, grid.key // SAMPLE, -(-IN_BLOCK // grid.group)))
    return grid.key // next(n for n in range(count, grid.key + 1) if grid.key % n == 0)


def _sampled_at(grid: Grid, device: torch.device, held_out: bool = False) -> torch.Tensor:
    every = _every(grid)
    at = torch.arange(0, grid.blocks * grid.key, every, device=device)
    return grid.start + at + (at // every * STAGGER + (0 if held_out else every // 2)) % every


def _hidden(scores: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
    """Scores (B, H, n, S) without those of keys that nobody may attend to."""
    return scores if seen is None else scores.masked_fill_(~seen[:, None, None], -math.inf)


def pooled(q: torch.Tensor, k: torch.Tensor, grid: Grid, seen: Maybe = None, places: Maybe = None) -> torch.Tensor:
    """Softmax over the blocks of mean query by mean key (Jenga, SpargeAttn: arXiv 2505.16864, 2502.18137)."""
    image = slice(grid.start, grid.end)
    pooled_q, pooled_k = (x[:, image].unflatten(1, (-1, grid.key)).mean(2, dtype=torch.float32) for x in (q, k))
    scores = _by_row(pooled_q.transpose(1, 2), grid) @ pooled_k.permute(0, 2, 3, 1)
    return (scores / math.sqrt(q.shape[-1])).softmax(-1)


def antidiagonal(
    q: torch.Tensor, k: torch.Tensor, grid: Grid, seen: Maybe = None, places: Maybe = None
) -> torch.Tensor:
    """Softmax over the blocks of scores summed along the antidiagonals of 16 x 16 tiles (XAttention, 2503.16428)."""
    tile = min(TILE, grid.key)
    tiles_q, tiles_k = (x[:, grid.start : grid.end].unflatten(1, (-1, tile)).permute(0, 3, 1, 2, 4) for x in (q, k))
    scores = (tiles_q.flip(3).flatten(3) @ tiles_k.flatten(3).mT).float().div_(tile * math.sqrt(q.shape[-1]))
    return _by_row(_by_block(scores.softmax(-1), grid), grid)


def window(q: torch.Tensor, k: torch.Tensor, grid: Grid, seen: Maybe = None, places: Maybe = None) -> torch.Tensor:
    """The nearest blocks, whatever they hold: a static window, the control. Its shares are no measured mass."""
    return _nearest(torch.arange(grid.blocks, device=q.device)[None, None, :, None].float(), q, grid)


def sliding_tile(
    q: torch.Tensor, k: torch.Tensor, grid: Grid, seen: Maybe = None, places: Maybe = None
) -> torch.Tensor:
    """The blocks that lie nearest in the picture or video, along the axis in which they are farthest apart: the window
    of Sliding Tile Attention (arXiv 2502.04507) where blocks are compact, as in Hilbert order. Else as `window`."""
    if places is None:
        return window(q, k, grid, seen)
    inside = places[:, grid.start : grid.end].float()
    return _nearest(inside.unflatten(1, (grid.blocks, grid.key)).mean(2).transpose(1, 2), q, grid)


def _nearest(centres: torch.Tensor, q: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Shares that fall with the distance of key blocks, whose centres (B, H, blocks, axes) are given, from a row's."""
    if not grid.blocks:
        return q.new_zeros(q.shape[0], q.shape[2], 0, 0, dtype=torch.float32)
    away = (centres[:, :, None] - _by_row(centres, grid)[:, :, :, None]).abs().amax(-1)
    near = 1 / (1 + away)
    return (near / near.sum(-1, keepdim=True)).expand(q.shape[0], q.shape[2], -1, -1)


def _by_block(weights: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Mass (B, H, n, blocks) in each key block, of softmax weights (B, H, n, keys), equally many of every block."""
    return weights.unflatten(-1, (grid.blocks, -1)).sum(-1) if grid.blocks else weights


def _by_row(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Means (B, H, rows, N) over the queries of each query block, of (B, H, n, N), equally many of every key block."""
    if not grid.blocks:
        return x.new_zeros(*x.shape[:2], 0, 0)
    x = x.unflatten(2, (grid.blocks, -1)).mean(3)
    missing = grid.rows * grid.group - grid.blocks
    total = F.pad(x, (0, 0, 0, missing)).unflatten(2, (-1, grid.group)).sum(3)
    sizes = torch.full((grid.rows, 1), float(grid.group), device=x.device)
    sizes[-1:] -= missing
    return total / sizes


def losses(shares: torch.Tensor, v: torch.Tensor, grid: Grid) -> torch.Tensor:
    """What leaving a block out costs an output, up to a factor: its share times the spread of its values.

    Blocks that are left out are put back from their means (`remainder`), so that what is lost of a block is how its
    values differ from their mean: the idea of SVG-EAR (arXiv 2603.08982), which computes exactly where that is largest.

    Args:
        shares: (B, H, rows, blocks) of the softmax mass.
        v: (B, S, H, D) values.
    """
    if not grid.blocks:
        return shares
    blocks = v[:, grid.start : grid.end].unflatten(1, (grid.blocks, grid.key))
    some = blocks[:, :, :: max(1, grid.key // SPREAD)].float()
    spread = (some - some.mean(2, keepdim=True)).square().mean((2, 4)).sqrt().transpose(1, 2)[:, :, None]
    largest = spread.amax(-1, keepdim=True)
    # Where values do not differ at all the shares alone decide.
    return shares * spread.clamp_min(1e-3 * largest).where(largest > 0, 1.0)


PRODUCERS: dict[str, Producer] = {f.__name__: f for f in (sampled, pooled, antidiagonal, window, sliding_tile)}
SLIDING_TILE = sliding_tile.__name__
STATIC = (window.__name__, SLIDING_TILE)  # they keep what is near, whatever it holds
