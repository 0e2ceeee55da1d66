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
    pooled = -10 * math.log10(math.fsum(map(_squared_error, each)) / len(each))
    half = _half_width(_pulls(each))
    assert half is not None
    return [max(0.0, pooled - half), min(CAP_DB, pooled + half)]


def psnr_gain_interval(gain: float, each: Sequence[float], other: Sequence[float]) -> list[float] | None:
    """The interval of the difference of two pooled PSNRs, `gain` dB, of pictures of the same prompts.

    As `psnr_interval`, of the difference of both prompt by prompt: what makes a prompt hard for both cancels.

    Args:
        each, other: PSNR of every prompt in dB, in the same order; what only one of them has is left out.

    Returns:
        Lower and upper bound in dB; None with fewer than two prompts in common.
    """
    common = min(len(each), len(other))
    half = _half_width([b - a for a, b in zip(_pulls(each[:common]), _pulls(other[:common]), strict=True)])
    return None if half is None else [gain - half, gain + half]


def _squared_error(db: float) -> float:
    return 0.0 if db >= CAP_DB else 10 ** (-db / 10)


def _pulls(each: Sequence[float]) -> list[float]:
    """How far each prompt moves the pooled PSNR: its share of the mean error, in dB; 0 where none has an error."""
    errors = [_squared_error(db) for db in each]
    mean = math.fsum(errors) / len(errors) if errors else 0.0
    return [10 / math.log(10) * error / mean if mean else 0.0 for error in errors]


def _half_width(values: Sequence[float]) -> float | None:
    """t s / sqrt(n) for the mean of these values."""
    from scipy.special import stdtrit

    count = len(values)
    if count < 2:
        return None
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return float(stdtrit(count - 1, (1 + LEVEL) / 2)) * math.sqrt(variance / count)
