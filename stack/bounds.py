"""Closed-form error bounds. Pure functions of numbers or tensors; each states its assumptions and its source."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def rounding_bound(scale: torch.Tensor) -> torch.Tensor:
    """Largest error of one element rounded to the nearest multiple of `scale`: scale / 2.

    Assumes the element lies within the representable range (scale >= absmax / levels). Elementwise.
    """
    return scale / 2


def int8_matmul_bound(
    x_scale: torch.Tensor, w_scale: torch.Tensor, x_l1: torch.Tensor, w_l1: torch.Tensor, inner: int
) -> torch.Tensor:
    """Largest error of one output of a linear whose input rows and weight rows were both rounded.

    With x = x' + e, |e| <= x_scale / 2 and w = w' + f, |f| <= w_scale / 2 elementwise:
    |x.w - x'.w'| = |x'.f + e.w' + e.f| in the worst case <= |x|_1 w_scale/2 + |w|_1 x_scale/2 + K x_scale w_scale/4
    where the norms are those of the unrounded rows (x.f + e.w - e.f is the same sum).

    Args:
        x_scale, x_l1: (M, 1) step and L1 norm of each input row.
        w_scale, w_l1: (N,) step and L1 norm of each output channel's weights.
        inner: K, the length of the sum.

    Returns:
        (M, N), in the units of the output, before any rounding of the accumulator.
    """
    return x_l1 * w_scale / 2 + w_l1 * x_scale / 2 + inner * x_scale * w_scale / 4


def truncation_error(singular_values: torch.Tensor, rank: int) -> torch.Tensor:
    """Frobenius error of the best rank-`rank` approximation: the root of the discarded energy (Eckart-Young 1936).

    An equality for the projection on the leading right singular vectors, a lower bound for any other subspace.
    """
    return singular_values[rank:].square().sum().sqrt()


def level_rounding_bound(levels: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Largest error of one weight rounded to the nearest of some levels times `step`: half the widest gap, times it.

    Assumes that the weight lies between the outermost levels, as it does where the step comes from the group's largest.

    Args:
        levels: (L,) ascending.
        step: any shape, the result's.
    """
    return (levels[1:] - levels[:-1]).max() / 2 * step.abs()


def low_rank_rounding_bound(singular_values: torch.Tensor, rank: int, levels: torch.Tensor, group: int) -> torch.Tensor:
    """Largest Frobenius error of L R + Q(W - L R), L R the best approximation of its rank.

    A group of g residuals with largest magnitude m has an error of at most sqrt(g) m half a gap, and m is at most the
    group's norm; over all groups: half the widest gap * sqrt(g) * the residual's Frobenius norm, which is
    `truncation_error` (Eckart-Young 1936). That the error falls with the residual's norm is why a branch helps
    (Li et al. 2024, SVDQuant, arXiv 2411.05007, section 4.2).

    Assumes that levels reach from -1 to 1, a step per group that is its largest magnitude, and exact L and R.

    Args:
        singular_values: of the weight, largest first.
        levels: (L,) ascending.
        group: weights per step.
    """
    return level_rounding_bound(levels, truncation_error(singular_values, rank)) * math.sqrt(group)


def dropped_mass_bound(dropped: torch.Tensor, value_radius: torch.Tensor) -> torch.Tensor:
    """Largest error of one attention output when softmax mass `dropped` is left out and the rest renormalised.

    o - o_kept = dropped * (mean of dropped values - o_kept), and both lie in the convex hull of the values, hence
    |o - o_kept| <= dropped * diameter(V) <= 2 * dropped * max_i |v_i - c| for any centre c.

    Args:
        dropped: share of the softmax mass outside the kept keys, in [0, 1].
        value_radius: max_i |v_i - c|, c the mean value.
    """
    return 2 * dropped * value_radius


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
