"""Closed-form error bounds that plans and reports print or decide by. Each states its assumptions and its source.

Bounds that explain a design and that no code asks for are in `benchmarks/boundbench/documented.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch

Number = TypeVar("Number", float, torch.Tensor)


def level_rounding_bound(levels: torch.Tensor) -> float:
    """Largest error of a number rounded to the nearest of some levels: half the widest gap, in units of the levels.

    Assumes that the number lies between the outermost levels, as it does where they are scaled to the largest
    magnitude of the numbers that share them.

    Args:
        levels: (L,) ascending, L >= 2.
    """
    return float((levels[1:] - levels[:-1]).max()) / 2


def dropped_mass_bound(dropped: Number, value_radius: Number) -> Number:
    """Largest error of one attention output when softmax mass `dropped` is left out and the rest renormalised.

    o - o_kept = dropped * (mean of dropped values - o_kept), and both lie in the convex hull of the values, hence
    |o - o_kept| <= dropped * diameter(V) <= 2 * dropped * max_i |v_i - c| for any centre c. It also holds where a mean
    of dropped values is blended back in with a share s <= dropped, as `attention.remainder` does: the error is then
    (dropped - s) * (mean of dropped values - o_kept) + s * (mean of dropped values - blended mean).

    Args:
        dropped: share of the softmax mass outside the kept keys, in [0, 1].
        value_radius: max_i |v_i - c|, c the mean value.
    """
    return 2 * dropped * value_radius


def filler_share_bound(fillers: int, keys: int, mean_score: Number | float = 0.0) -> Number | float:
    """Largest softmax mass on m keys of score 0 that are added to S others: m / (m + S exp(mean score of the S)).

    The S others have the mass sum exp(s_j) >= S exp(mean s_j) (Jensen's inequality). Smoothed keys have mean 0, and so
    have their scores, whatever the query: then a filler weighs no more than the average key. Reached where all scores
    are alike.

    Args:
        fillers: m.
        keys: S >= 1.
        mean_score: of the S others, in units of the exponent. Rounding moves it a little away from 0.
    """
    weight = math.exp(mean_score) if isinstance(mean_score, float) else mean_score.exp()
    return fillers / (fillers + keys * weight)


def best_speedup(shares: Sequence[float], rates: Sequence[float]) -> float:
    """Amdahl's law: 1 / (1 - sum p + sum p / r) for parts of the time p made r times faster."""
    rest = 1 - sum(shares)
    total = rest + sum(p / r for p, r in zip(shares, rates, strict=True))
    return math.inf if total == 0 else 1 / total


def rounding_share(before: torch.Tensor, after: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """Share of an update that is left in weights rounded after it was added: <after - before, D> / |D|^2.

    1 when all of it is there (in expectation also with rounding errors that do not depend on it), 0 when none is.

    Args:
        before, after: weights without and with it, as they are stored.
        update: D, of the same shape.

    Returns:
        A scalar; 1 for an update of zeros.
    """
    energy = update.float().square().sum()
    moved = ((after.float() - before.float()) * update.float()).sum()
    return torch.where(energy > 0, moved / energy.clamp(min=torch.finfo(torch.float32).tiny), torch.ones_like(energy))


def merged_share(ratio: float) -> float:
    """Expected share of a Gaussian update that survives being added to weights on a grid and rounded to that grid.

    With D ~ N(0, d^2), step q and r = d / q: E[round(D / q) q D] / d^2 = (2 / r) * sum_k phi((k + 1/2) / r), since
    round(D / q) counts the thresholds (k + 1/2) q below |D| and E[|D|; |D| > t] = 2 d phi(t / d). Assumes that the
    grid stays the same: a scale found anew moves it a little, and then up to 0.02 more survives.

    Args:
        ratio: r, the update's root mean square over the step; against the step's own rounding noise it is r sqrt(12).
    """
    if ratio <= 0:
        return 0.0
    thresholds = range(int(40 * ratio) + 2)
    return 2 / ratio * sum(math.exp(-(((k + 0.5) / ratio) ** 2) / 2) for k in thresholds) / math.sqrt(2 * math.pi)


def sin_theta_bound(gram_noise: float, gap: float, rank: int = 1) -> float:
    """Largest Frobenius norm of sin(Theta) between the leading `rank` eigenvectors before and after a disturbance.

    2 sqrt(rank) |E|_2 / (lambda_k - lambda_(k+1)), with the eigenvalues of the undisturbed symmetric matrix (Davis and
    Kahan 1970 in the form of Yu, Wang and Samworth 2015, theorem 2). At most sqrt(rank), whatever the gap.

    Args:
        gram_noise: spectral norm of the disturbance of the Gram matrix.
        gap: lambda_k - lambda_(k+1) >= 0.
    """
    most = math.sqrt(rank)
    return most if gap <= 0 else min(most, 2 * math.sqrt(rank) * gram_noise / gap)


def lagrange_weights(nodes: Sequence[float], x: float) -> list[float]:
    """Weights of the full steps' features in the polynomial forecast at x: prod_(j != i) (x - x_j) / (x_i - x_j).

    Newton's divided differences, as a cache sums them, are the same polynomial.
    """
    return [
        math.prod((x - other) / (node - other) for j, other in enumerate(nodes) if j != i)
        for i, node in enumerate(nodes)
    ]


def final_error_bound(errors: Sequence[float], gaps: Sequence[float], lipschitz: float = 0.0) -> float:
    """Largest error of the final sample after Euler steps x' = x + gap v(x) with v off by errors_n on step n.

    sum_n |gap_n| e_n prod_(m > n) (1 + |gap_m| L), which is discrete Gronwall. Assumes |v(x) - v(y)| <= L |x - y| at
    every noise level; both runs start from the same noise. With L = 0 a model passes errors on as they are. Errors of
    several passes add up on each step (triangle inequality), if each was measured on top of those below it.

    Args:
        errors: |v - exact v| on each step, in the sample's units.
        gaps: of the noise levels, step by step.
        lipschitz: L.
    """
    total = 0.0
    for error, gap in zip(errors, gaps, strict=True):
        total = (1 + abs(gap) * lipschitz) * total + abs(gap) * error
    return total
