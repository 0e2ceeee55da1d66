"""FastCache's significance test (arXiv 2505.20353): is a block's input still what it was? Pure numbers.

delta = |X_t - X_(t-1)|_F / |X_(t-1)|_F for the block's input X (N tokens, width D). The paper's null hypothesis,
(N D) delta^2 ~ chi^2_(N D), lets delta be as large as sqrt(quantile / N D), which is 1 to within a few per cent for any
real N D: a change of 100 % is "not significant". What is missing is the scale of a change that does not matter, and it
differs from block to block. Here (N D) delta^2 / scale^2 is tested, and the scale is measured on the model itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

ADAPTIVE = (0.01, 0.5, -0.002, 5e-5)  # b0..b3 of the published code


def largest_change(scale: float, alpha: float, elements: int) -> float:
    """The largest delta that the test lets pass: scale sqrt(chi^2_(ND, 1 - alpha) / ND). Scale 1 is the paper's null.

    Args:
        alpha: significance level, in (0, 1).
        elements: N D, numbers in the block's input; at least 1.
    """
    from scipy.special import chdtri

    return scale * math.sqrt(float(chdtri(elements, alpha)) / elements)


def adaptive_limit(change: float, moment: float, coefficients: Sequence[float] = ADAPTIVE) -> float:
    """The paper's second threshold on delta, b0 + b1 delta + b2 t + b3 t^2.

    It rises with the very delta it judges: delta <= b0 + b1 delta is delta <= b0 / (1 - b1), 0.02 as published.

    Args:
        change: delta.
        moment: t, the timestep in thousands: the noise level in [0, 1].
    """
    constant, slope, linear, square = coefficients
    return constant + slope * change + linear * moment + square * moment**2


def tolerated_scale(changes: Sequence[float], errors: Sequence[float], allowed: float) -> float:
    """The scale of one block: the delta at which replacing it is expected to cost what is allowed.

    The expectation is the least-squares line error = floor + slope delta, neither below 0, over a calibration run.

    Args:
        changes: delta of each call.
        errors: relative error of the block's output, had it been replaced in that call.

    Returns:
        At most the largest of the changes, beyond which nothing was measured; 0 where the floor alone is too much: the
        block then always runs.
    """
    if not changes:
        return 0.0
    floor, slope = _line(changes, errors)
    if allowed <= floor:
        return 0.0
    return max(changes) if allowed - floor >= slope * max(changes) else (allowed - floor) / slope


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Floor and slope of the least-squares line, under floor >= 0 and slope >= 0."""
    middle, level = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - middle) ** 2 for a in x)
    slope = sum((a - middle) * (b - level) for a, b in zip(x, y, strict=True)) / spread if spread else 0.0
    if slope <= 0:
        return level, 0.0
    if level >= slope * middle:
        return level - slope * middle, slope
    return 0.0, sum(a * b for a, b in zip(x, y, strict=True)) / sum(a * a for a in x)
