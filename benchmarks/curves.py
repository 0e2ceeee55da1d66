"""Speed against quality as curves: what a control reaches in a row's time, when a family of rows reaches a level."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from stack.comparison.report.plots import front
from stack.measure.metrics import CAP_DB

Point = tuple[float, float]  # (speedup, PSNR in dB)


def at_speedup(curve: Sequence[Point], speedup: float) -> float:
    """PSNR of a curve at a speedup, linear between its points in the logarithm of time.

    At a speedup of 1 and below the control is the base itself, identical (99 dB). Beyond its fastest and its slowest
    point a curve is taken to stay where it is. Of points at one speedup the best counts.

    Args:
        curve: points in any order, at least one.
    """
    if speedup <= 1:
        return CAP_DB
    best: dict[float, float] = {}
    for point, value in curve:
        best[math.log(point)] = max(value, best.get(math.log(point), value))
    xs = sorted(best)
    return float(np.interp(math.log(speedup), xs, [best[x] for x in xs]))


def speedup_at(points: Sequence[Point], level: float) -> tuple[float, bool]:
    """The speedup at which a family of rows still has this many dB, and whether it gets there at all.

    Interpolated between the points that no other beats, linear in the logarithm of time. A family that is better even
    at its fastest point gets that one's speedup; one that never gets there its slowest point's, which flatters it.

    Args:
        points: in any order, at least one.
    """
    best = [points[i] for i in reversed(front(points))]  # fastest first, dB rising
    if best[-1][1] < level:
        return min(speedup for speedup, _ in points), False
    logs = [math.log(speedup) for speedup, _ in best]
    return math.exp(float(np.interp(level, [value for _, value in best], logs))), True
