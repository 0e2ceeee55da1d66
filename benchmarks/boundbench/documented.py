"""Bounds as documentation: nothing in the package asks for them. Each holds for the code that its tests run.

They say why the package is built as it is: why errors of int8 products average out, why differences are shrunk, and
how far a forecast from noisy steps may be off. `stack.bounds` has those that plans and reports use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from stack.bounds import lagrange_weights


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


def shrunken_error(signal: float, noise: float, gain: float) -> float:
    """Expected squared error of gain * (s + n) as an estimate of s: (1 - g)^2 S + g^2 N.

    Assumes noise that is independent of the signal; S and N are expected squares. Least at g = S / (S + N), where it is
    S N / (S + N): below N, what extrapolating in full costs, and below S, what reuse costs.
    """
    return (1 - gain) ** 2 * signal + gain**2 * noise


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


def moved_scores_bound(moved: torch.Tensor | float, value_radius: torch.Tensor | float) -> torch.Tensor | float:
    """Largest error of one attention output whose scores are off by `moved` each at most: 2 tanh(moved / 2) radius.

    The weights p turn into p e^d / sum(p e^d) with |d| <= moved. The mass that this moves is largest where part of it
    has d = moved and the rest d = -moved, and is tanh(moved / 2) at most; each bit of it moves from one value to
    another, which are two radii apart.

    Args:
        moved: 0 or more, in units of the exponent.
        value_radius: largest distance of the values from some common point, such as their mean.
    """
    share = math.tanh(moved / 2) if isinstance(moved, float | int) else torch.tanh(moved / 2)
    return 2 * share * value_radius
