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

    Errors of typical inputs cancel, so that they are smaller by about 3 sqrt(K): 96 times at K = 1,024
    (`benchmarks/bounds.py`). Reached where all of them point the same way. `int8_matmul_likely_bound` uses that they
    do not.

    Args:
        x_scale, x_l1: (M, 1) step and L1 norm of each input row.
        w_scale, w_l1: (N,) step and L1 norm of each output channel's weights.
        inner: K, the length of the sum.

    Returns:
        (M, N), in the units of the output, before any rounding of the accumulator.
    """
    return x_l1 * w_scale / 2 + w_l1 * x_scale / 2 + inner * x_scale * w_scale / 4


def int8_matmul_likely_bound(
    x_scale: torch.Tensor, w_scale: torch.Tensor, x_l2: torch.Tensor, w_l2: torch.Tensor, inner: int, chance: float
) -> torch.Tensor:
    """What the error of such an output stays within but for this chance; it grows as the root of K, not as K.

    The error x.f + e.w - e.f is a sum of 2 K terms |x_i| w_scale and |w_i| x_scale wide, and of K that are
    x_scale w_scale / 2 wide: sqrt(ln(2 / chance) / 2 * (|x|^2 w_scale^2 + |w|^2 x_scale^2 + K (x_scale w_scale / 2)^2))
    (Hoeffding 1963, theorem 2). Assumes rounding errors with mean zero, independent of each other and of what is
    rounded (Bennett 1948), as they are where steps are small against the spread of the values.

    Args:
        x_scale, x_l2: (M, 1) step and L2 norm of each input row.
        w_scale, w_l2: (N,) step and L2 norm of each output channel's weights.
        chance: in (0, 1), for one output.

    Returns:
        (M, N), in the units of the output.
    """
    wide = (x_l2 * w_scale).square() + (w_l2 * x_scale).square() + inner * (x_scale * w_scale / 2).square()
    return (wide * math.log(2 / chance) / 2).sqrt()


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


def weyl_bound(noise_norm: float) -> float:
    """Largest change of any singular value under a disturbance E: its spectral norm |E|_2 (Weyl 1912)."""
    return noise_norm


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


def forecast_bound(nodes: Sequence[float], x: float, curvature: float, noise: float = 0.0) -> float:
    """Largest error of a polynomial forecast over n nodes: M |prod (x - x_i)| / n! + e sum |l_i(x)|.

    Assumes a trajectory whose n-th derivative is at most M in norm between nodes and x (the remainder of Newton's
    interpolation formula), and features that are off by at most e each; l_i are the `lagrange_weights`. One node is
    reuse: M is then a bound on the slope.

    Args:
        curvature: M, of order n = len(nodes).
        noise: e.
    """
    remainder = curvature * math.prod(abs(x - node) for node in nodes) / math.factorial(len(nodes))
    return remainder + noise * sum(map(abs, lagrange_weights(nodes, x)))


def shrunken_error(signal: float, noise: float, gain: float) -> float:
    """Expected squared error of gain * (s + n) as an estimate of s: (1 - g)^2 S + g^2 N.

    Assumes noise that is independent of the signal; S and N are expected squares. Least at g = S / (S + N), where it is
    S N / (S + N): below N, what extrapolating in full costs, and below S, what reuse costs.
    """
    return (1 - gain) ** 2 * signal + gain**2 * noise


def average_lag(weight: float, slope: float, gap: float) -> float:
    """How far an EMA lies behind a straight line it has followed for long: |slope| gap weight / (1 - weight).

    Args:
        weight: of the older value, in [0, 1).
        gap: between the values.
    """
    return abs(slope) * gap * weight / (1 - weight)


def average_bound(weight: float, slope: float, gap: float, ahead: float, noise: float = 0.0) -> float:
    """Largest error of an EMA of a feature that stands in for it: M (gap weight / (1 - weight) + ahead) + e.

    Assumes a trajectory whose slope is at most M in norm, full steps at most `gap` apart, and features that are off by
    at most e each. The value i full steps ago weighs at most (1 - w) w^i and is at most M (ahead + i gap) away; the
    weights sum to 1, and sum (1 - w) w^i i = w / (1 - w). Reached by a straight line that has been followed for long:
    `average_lag`.

    Args:
        weight: of the older value, in [0, 1).
        slope: M.
        ahead: from the newest full step to where the feature is needed.
        noise: e.
    """
    return slope * (gap * weight / (1 - weight) + ahead) + noise


def shrunken_forecast_bound(
    nodes: Sequence[float], x: float, slope: float, curvature: float, gain: float, noise: float = 0.0
) -> float:
    """Largest error of a forecast whose differences are all multiplied with a gain in [0, 1].

    It is (1 - g) times reuse plus g times the polynomial forecast, so that its bias is at most the same mixture of
    theirs (`forecast_bound` at orders 1 and n), and noise enters with the mixed weights:
    (1 - g) M |x - x_0| + g C |prod (x - x_i)| / n! + e (|1 - g + g l_0(x)| + g sum_(i>0) |l_i(x)|). Gain 1 is the plain
    forecast, gain 0 plain reuse. Assumptions are those of `forecast_bound`.

    Args:
        nodes: x_0, x_1, ..., newest first.
        slope: M, of order 1.
        curvature: C, of order n = len(nodes).
        noise: e.
    """
    first, *others = lagrange_weights(nodes, x)
    gains = abs(1 - gain + gain * first) + gain * sum(map(abs, others))
    reuse, whole = forecast_bound(nodes[:1], x, slope), forecast_bound(nodes, x, curvature)
    return (1 - gain) * reuse + gain * whole + noise * gains


def final_error_bound(errors: Sequence[float], gaps: Sequence[float], lipschitz: float) -> float:
    """Largest error of the final sample after Euler steps x' = x + gap v(x) with v off by errors_n on step n.

    sum_n |gap_n| e_n prod_(m > n) (1 + |gap_m| L), which is discrete Gronwall. Assumes |v(x) - v(y)| <= L |x - y| at
    every noise level; both runs start from the same noise.
    """
    total = 0.0
    for error, gap in zip(errors, gaps, strict=True):
        total = (1 + abs(gap) * lipschitz) * total + abs(gap) * error
    return total


def replaced_block_bound(map_error: float, input_error: float, map_norm: float) -> float:
    """Largest error of a block that a linear map stands in for, on an input that is itself off.

    |W (x + d) - f(x)| <= |W x - f(x)| + |W|_2 |d|.

    Args:
        map_error: |W x - f(x)|.
        input_error: |d|.
        map_norm: |W|_2.
    """
    return map_error + map_norm * input_error


def stack_error_bound(errors: Sequence[Sequence[float]], gaps: Sequence[float], lipschitz: float) -> float:
    """Largest error of the final sample under a stack of passes: their errors add up on every step.

    With f_0 the model and f_p the model with the first p passes, |f_n - f_0| <= sum_p |f_p - f_(p-1)| at every input
    (telescoping sum and triangle inequality); through the sampler they go as in `final_error_bound`.

    Assumes that each pass was measured on top of those below it, and f_0's Lipschitz constant.

    Args:
        errors: for each pass, bounds on |f_p(x) - f_(p-1)(x)| step by step.
        gaps: of the noise levels, step by step.
    """
    return final_error_bound([sum(step) for step in zip(*errors, strict=True)], gaps, lipschitz)


def hoeffding_margin(samples: int, failure: float) -> float:
    """How far the mean of `samples` draws may lie from its expectation, but for a chance of `failure`.

    sqrt(ln(2 / failure) / (2 n)), for independent draws from [0, 1], not necessarily of one distribution (Hoeffding
    1963, theorem 2). One query drawn uniformly from each of n runs of equal length has the mean over all queries as its
    expectation, whatever they are. It uses nothing but the range: 0.34 at n = 16 and 5 %.

    Args:
        samples: n >= 1.
        failure: chance in (0, 1) of being further off, to either side.
    """
    return math.sqrt(math.log(2 / failure) / (2 * samples))
