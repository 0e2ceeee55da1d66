"""Where full steps should be, from errors measured once: exact dynamic programming over additive segment costs. Pure.

A run of cached steps between full steps i and j, predicted from i and the full step h before it, leaves an error in the
final sample that depends on (h, i, j) alone, as long as errors do not feed back into later features. Under that
assumption the best schedule is a shortest path with K nodes. (CacheQuant, arXiv 2503.01323, plans reuse caches by such
a program over feature distances; here the cost is the sampler-weighted error of the forecast itself.)
"""

from __future__ import annotations

import math
from collections.abc import Callable

SegmentCost = Callable[[int, int, int], float]
"""(previous full step or -1, full step, next full step or the number of steps) to the cost of the steps between."""


def best_schedule(cost: SegmentCost, count: int, steps: int, longest: int = 0) -> tuple[tuple[int, ...], float]:
    """The `count` full steps, step 0 among them, with the least sum of segment costs, and that sum.

    Time grows with steps * longest^2 * count.

    Args:
        longest: cached steps in a row that are considered; 0 takes three times the average.

    Returns:
        Full steps in order, and their cost.
    """
    reach = (longest or max(3, math.ceil(3 * (steps - count) / count))) + 1
    paths: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {(-1, 0): (0.0, (0,))}
    for placed in range(1, count):
        longer: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {}
        for (before, at), (total, path) in paths.items():
            # Room for the full steps still to come, and for the steps behind the last one.
            lowest = max(at + 1, steps - (count - placed) * reach)
            for to in range(lowest, min(at + reach, steps - (count - placed)) + 1):
                value = total + cost(before, at, to)
                if (at, to) not in longer or value < longer[at, to][0]:
                    longer[at, to] = value, (*path, to)
        paths = longer
    ends = [(total + cost(before, at, steps), path) for (before, at), (total, path) in paths.items()]
    value, path = min(ends)
    return path, value
