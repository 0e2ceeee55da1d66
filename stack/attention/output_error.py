"""What sampled queries lose by a map, exactly: their outputs by the first 0, 1, ... blocks of their row, and by all.

Of a sampled query all softmax weights are known (`producers.Sample`). So its exact output is known too, and, as a
running sum over the blocks of its row, what `kernels.sparse_attention` would make of it with any number of them: kept
blocks as they are, dropped ones by their means (`remainder`). For these queries the error is measured. For the others
of their query block it is an estimate from one in 32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .maps import Grid, fewest, first_blocks, in_parts, ranked
from .producers import Sample

LEVELS = 16  # numbers of blocks between which a map for an error chooses; the error is measured by each of them
FAINTEST = 1e-30  # softmax mass of kept blocks below which their mean is lost in rounding


def error_map(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sample: Sample,
    shares: torch.Tensor,
    grid: Grid,
    max_error: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The fewest key blocks per row with which its sampled outputs are off by at most `max_error`, its own always.

    Args:
        q, k, v: (B, S, H, D).
        shares: (B, H, rows, blocks) of the sample.
        max_error: see `errors_by_count`. A head is within it where each of its rows is.

    Returns:
        The map as `maps.block_map` gives it, and the error of each row (B, H, rows) by it. No sync.
    """
    order, counts = ranked(shares, grid), levels(grid, shares.device)
    errors = errors_by_count(q, k, v, sample, order, grid, counts)
    chosen = fewest(errors, counts, max_error, grid)
    return first_blocks(order, chosen), errors.gather(-1, torch.searchsorted(counts, chosen)[..., None])[..., 0]


def levels(grid: Grid, device: torch.device) -> torch.Tensor:
    """The numbers of blocks (N,) that a map for an error may keep: sixteenths of all, from a row's own on.

    The last row may have fewer own blocks than the others.
    """
    counts = {-(-i * grid.blocks // LEVELS) for i in range(1, LEVELS + 1)}
    own = {min(n, grid.blocks) for n in (grid.blocks - (grid.rows - 1) * grid.group, grid.group)}
    return torch.tensor(sorted(n for n in counts | own if n >= min(own)), device=device)


def errors_by_count(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sample: Sample,
    order: torch.Tensor,
    grid: Grid,
    counts: torch.Tensor,
) -> torch.Tensor:
    """Root mean square error of a row's sampled outputs, over the root mean square of all sampled outputs of its head.

    Args:
        q, k, v: (B, S, H, D).
        order: (B, H, rows, blocks) key blocks in the order in which they are kept.
        counts: (N,) ascending, the last one is all blocks.

    Returns:
        (B, H, rows, N) fp32; entry n is with the first `counts[n]` blocks of the order, the last one 0. NaN where the
        kept blocks hold next to no mass.
    """
    if not grid.blocks:
        return sample.scores.new_zeros(*order.shape[:3], len(counts))
    queries = _Queries(q[:, sample.at].transpose(1, 2), sample.weights, sample.lse)
    values, in_row = _Values(k, v, grid), grid.group * (len(sample.at) // grid.blocks)
    held = queries.weights[0, ..., 0].numel() * grid.blocks * v.shape[-1]
    at_once = -(-grid.rows // in_parts(held, v.device))
    off, energy = [], []
    for first in range(0, grid.rows, at_once):
        orders = order[:, :, first : first + at_once, None]
        kept = first_blocks(orders, counts.expand(*orders.shape[:3], -1))
        out = _outputs(queries.part(first * in_row, at_once * in_row), values, kept, in_row, grid)
        off.append((out - out[:, :, :, -1:]).square().sum((-2, -1)))
        energy.append(out[:, :, :, -1].square().sum((-2, -1)))
    sizes = torch.full((grid.rows,), in_row, device=v.device)
    sizes[-1:] = len(sample.at) - (grid.rows - 1) * in_row
    mean_energy = torch.cat(energy, 2).sum(-1)[..., None, None] / len(sample.at)
    mean_off = torch.cat(off, 2) / sizes[:, None]
    # Where all outputs are 0 nothing but 0 is within any budget.
    return (mean_off / mean_energy.clamp_min(torch.finfo(torch.float32).tiny)).sqrt()


@dataclass(frozen=True)
class _Queries:
    """Sampled queries (B, H, n, D), their softmax weights (B, H, n, S) and the log-sum-exp of scores (B, H, n, 1)."""

    query: torch.Tensor
    weights: torch.Tensor
    lse: torch.Tensor

    def part(self, first: int, count: int) -> _Queries:
        """Some of them."""
        return _Queries(*(x[:, :, first : first + count] for x in vars(self).values()))


class _Values:
    """What is attended to, by block and as block means.

    Attributes:
        inside: (B, H, blocks, key, D) values.
        outside: (B, H, rest, D) values that are always kept.
        keys, means: (B, H, blocks, D) mean keys and mean values.
    """

    def __init__(self, k: torch.Tensor, v: torch.Tensor, grid: Grid):
        heads = v.transpose(1, 2)
        self.inside = heads[:, :, grid.start : grid.end].unflatten(2, (grid.blocks, grid.key))
        self.outside = torch.cat([heads[:, :, : grid.start], heads[:, :, grid.end :]], 2)
        self.keys = k[:, grid.start : grid.end].unflatten(1, (grid.blocks, grid.key)).mean(2).transpose(1, 2)
        self.means = self.inside.mean(3).float()


def _outputs(queries: _Queries, values: _Values, kept: torch.Tensor, in_row: int, grid: Grid) -> torch.Tensor:
    """Outputs (B, H, rows, N, in_row, D) of some rows' sampled queries by N maps, 0 for those missing in the last row.

    Args:
        kept: (B, H, rows, N, blocks).
        in_row: queries of a row.
    """
    weights, dtype = queries.weights, values.inside.dtype
    of_block = weights[..., grid.start : grid.end].unflatten(-1, (grid.blocks, grid.key))
    rest = torch.cat([weights[..., : grid.start], weights[..., grid.end :]], -1)
    missing = kept.shape[2] * in_row - weights.shape[2]

    def by_row(x: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
        """(B, H, n, ...) as (B, H, rows, in_row, ...)."""
        pad = (0, 0) * (x.ndim - 3) + (0, missing)
        return F.pad(x, pad, value=fill).unflatten(2, (-1, in_row))

    sums = (of_block.transpose(2, 3).to(dtype) @ values.inside).float().transpose(2, 3)  # (B, H, n, blocks, D)
    scores = (queries.query @ values.keys.mT).float() / math.sqrt(queries.query.shape[-1]) + math.log(grid.key)
    guessed = by_row((scores - queries.lse).exp())[:, :, :, None] * ~kept[..., None, :]
    exact = kept.float() @ by_row(sums).transpose(3, 4).flatten(4)
    out = exact.unflatten(-1, (in_row, -1))
    out += (guessed.flatten(2, 4) @ values.means).unflatten(2, guessed.shape[2:5])
    out += by_row((rest.to(dtype) @ values.outside).float())[:, :, :, None]
    mass = (kept.float() @ by_row(of_block.sum(-1)).mT) + guessed.sum(-1)
    mass += by_row(rest.sum(-1), fill=1.0)[:, :, :, None]
    return out / mass.where(mass > FAINTEST, math.nan)[..., None]
