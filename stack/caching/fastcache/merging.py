"""Token merging by nearest-neighbour density, and its exact inverse on the positions (FastCache, arXiv 2505.20353)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

CHUNK = 1024  # rows of the distance matrix held at once


@dataclass(frozen=True, eq=False)
class Merge:
    """Tokens clustered, with an important token as the centre of every cluster.

    Attributes:
        centres: (M,) ascending indices of the important tokens; a merged token takes its centre's position.
        cluster: (N,) which centre each token belongs to, 0..M-1.
        weights: (N,) share of each token in its cluster's average.
        alone: (N,) whether a token is the only one of its cluster.
    """

    centres: torch.Tensor
    cluster: torch.Tensor
    weights: torch.Tensor
    alone: torch.Tensor

    def merge(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, D) to weighted averages (B, M, D). A token that is alone is copied."""
        merged = x.new_zeros(x.shape[0], len(self.centres), x.shape[2])
        return merged.index_add_(1, self.cluster, x * self.weights.to(x.dtype)[:, None])

    def unmerge(self, out: torch.Tensor, merged: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Every token moved as far as its cluster moved; a token that is alone takes its cluster's value exactly.

        Args:
            out: (B, M, D) what became of the merged tokens.
            merged: (B, M, D) what they were.
            x: (B, N, D) the tokens they were made of.
        """
        moved = x + (out - merged)[:, self.cluster]
        return torch.where(self.alone[:, None], out[:, self.cluster], moved)


def importance(
    x: torch.Tensor, before: torch.Tensor, neighbours: int = 5, motion: float = 1.0, chunk: int = CHUNK
) -> torch.Tensor:
    """(N,) rho_sp (1 + lambda rho_tm): density among the nearest neighbours, raised where the token moved.

    rho_sp = exp(-mean squared distance to the K nearest others), rho_tm = distance to the same token one step before.
    As printed both depend on the units of x, and exp underflows to 0 at any real width: here squared distances are
    divided by their mean over all tokens' neighbours, motions by their mean.

    Args:
        x, before: (N, D) tokens now and one step before.
        neighbours: K.
        motion: lambda.
    """
    count = min(neighbours, len(x) - 1)
    if count < 1:
        return torch.ones(len(x), device=x.device)
    x, before = x.float(), before.float()
    # The nearest of all is the token itself; it is left out by position, since others may lie at distance 0 too.
    near = torch.cat([d.topk(count, largest=False).values.mean(1) for d in _distances(x, x, chunk, others=True)])
    moved = (x - before).norm(dim=1)
    return torch.exp(-_relative(near)) * (1 + motion * _relative(moved))


def group(x: torch.Tensor, important: torch.Tensor, ratio: float, chunk: int = CHUNK) -> Merge:
    """Keep the `ratio` most important tokens as centres; every other token joins its nearest centre.

    The paper merges in three stages of attention resolution; this is one stage.

    Args:
        x: (N, D) tokens.
        important: (N,) see `importance`; also the weight of a token in its cluster's average.
    """
    keep = max(1, math.ceil(ratio * len(x)))
    centres = important.topk(keep).indices.sort().values
    nearest = torch.cat([d.argmin(1) for d in _distances(x.float(), x[centres].float(), chunk)])
    nearest[centres] = torch.arange(keep, device=x.device)
    weights = important.float().clamp_min(torch.finfo(torch.float32).tiny)
    totals = weights.new_zeros(keep).index_add_(0, nearest, weights)
    sizes = torch.bincount(nearest, minlength=keep)
    return Merge(centres, nearest, weights / totals[nearest], sizes[nearest] == 1)


def _distances(x: torch.Tensor, y: torch.Tensor, chunk: int, others: bool = False) -> Iterator[torch.Tensor]:
    """Squared distances, (at most chunk, len(y)) at a time; `others` puts each token infinitely far from itself."""
    squares = y.square().sum(1)
    for start in range(0, len(x), chunk):
        rows = x[start : start + chunk]
        table = torch.addmm(squares + rows.square().sum(1, keepdim=True), rows, y.mT, alpha=-2).clamp_min_(0)
        if others:
            own = torch.arange(len(rows), device=x.device)
            table[own, own + start] = math.inf
        yield table


def _relative(values: torch.Tensor) -> torch.Tensor:
    return values / values.mean().clamp_min(torch.finfo(values.dtype).tiny)
