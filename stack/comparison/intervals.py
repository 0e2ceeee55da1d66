"""How far a figure would move with other prompts: 95 % intervals by Student's t distribution over the prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..measure.metrics import CAP_DB

LEVEL = 0.95
MEDIAN = math.sqrt(math.pi / 2)
LARGEST = 100.0  # logarithm of a factor that says nothing any more, and is far from an overflow


def ratio_interval(ratio: float | None, base: Sequence[float], other: Sequence[float]) -> list[float] | None:
    """The interval of a speedup of medians: `ratio` divided and multiplied by exp(sqrt(pi / 2) t s / sqrt(n)).

    s is the standard deviation of log(base / other) over the n prompts that both were timed on, one after the other in
    the same round. A median of normally distributed values scatters sqrt(pi / 2) times as much as their mean.

    Returns:
        Lower and upper bound; None with fewer than two prompts.
    """
    logs = [math.log(a / b) for a, b in zip(base, other, strict=False) if a > 0 and b > 0]
    half = _half_width(logs)
    if half is None or not ratio:
        return None
    factor = math.exp(min(MEDIAN * half, LARGEST))
    return [ratio / factor, ratio * factor]


def psnr_interval(each: Sequence[float]) -> list[float] | None:
    """The interval of a PSNR that is pooled over prompts: that of the mean squared error, carried to decibels.

    The error's own interval is mean +- t s / sqrt(n). To first order the pooled PSNR moves by 10 / ln(10) times the
    relative change of the mean, which keeps the interval symmetric in dB and above no error at all (delta method).

    Args:
        each: PSNR of every prompt in dB.

    Returns:
        Lower and upper bound in dB; None with fewer than two prompts or where all pictures are identical.
    """
    if len(each) < 2 or min(each) >= CAP_DB:
        return None
    errors = [0.0 if db >= CAP_DB else 10 ** (-db / 10) for db in each]
    mean = math.fsum(errors) / len(errors)
    half = _half_width([10 / math.log(10) * error / mean for error in errors])
    assert half is not None
    pooled = -10 * math.log10(mean)
    return [max(0.0, pooled - half), min(CAP_DB, pooled + half)]


def _half_width(values: Sequence[float]) -> float | None:
    """t s / sqrt(n) for the mean of these values."""
    from scipy.special import stdtrit

    count = len(values)
    if count < 2:
        return None
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return float(stdtrit(count - 1, (1 + LEVEL) / 2)) * math.sqrt(variance / count)
