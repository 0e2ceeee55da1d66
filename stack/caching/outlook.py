"""What is ahead of a sample between two full steps: errors of the gaps to come, and the best way through them.

All of it is known from the noise levels, for the Gaussian data of `stack.caching.noise_schedule`, and worked out once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .noise_schedule import LARGEST, GapCosts

# Of a sample's size, what neither a forecast nor an interpolation of its estimates follows: rounding, and data that is
# not Gaussian. Without it the errors of narrow gaps are taken for those of a sample that is a thousand times as hard.
ROUGHNESS = 0.01
# Log variance of the strongest mode: how many full steps there will be is not known beforehand. With 4.5, 34 instead of
# 38 of 40 limits were kept on shapes-dit.
STRONGEST_AHEAD = 2.5
NONE = np.array([-1])


@dataclass(frozen=True, eq=False)
class Outlook:
    """Squared errors relative to the sample, of a ladder of N levels.

    The first two indices are (full step before the last + 1, last full step); 0 is none before.

    Attributes:
        left: (N + 1, N, N + 1) that the gap until the next full step, or the end, leaves in the finished sample.
        measured: (N + 1, N, N) of the estimates of the clean sample, what the full step at the gap's other end sees of
            it: with a corrector how far the gap's forecasts were from the interpolation, weighted as the sampler does,
            else how far the forecast at that step was off.
        to_go: (N, N + 1, N) least sum of `left` until the end, by the number of full steps to come.
    """

    left: np.ndarray
    measured: np.ndarray
    to_go: np.ndarray

    def next_full(self, before: int, at: int, more: int) -> int:
        """The next full step, on the best way with so many to come; N, the end, where that is 0."""
        steps = self.left.shape[1]
        if not more:
            return steps
        ways = self.left[before + 1, at, at + 1 : steps] + self.to_go[more - 1, at + 1, at + 1 :]
        return at + 1 + int(ways.argmin())


@lru_cache(maxsize=32)
def outlook(levels: tuple[tuple[float, float], ...], order: int, corrected: bool) -> Outlook:
    """Of a ladder of levels.

    Args:
        order, corrected: as `ByNoise` has them.
    """
    costs, steps = GapCosts(levels, min(order, 1), corrected, STRONGEST_AHEAD), len(levels)
    left, measured = costs.table(()), np.full((steps + 1, steps, steps), np.inf)
    for at in range(steps):
        to = np.arange(at + 1, steps + 1)
        left[0, at, to] = costs.segments(NONE, at, to)[0]  # after state was dropped, there is none before any step
        for before in (NONE, np.arange(at)) if at else (NONE,):
            seen = costs.measured(before, at, to[:-1]) + ROUGHNESS**2
            measured[np.ix_(before + 1, np.array([at]), to[:-1])] = seen[:, None]
    left += ROUGHNESS**2 * costs.unfollowed()
    to_go = [left[:, :, steps]]
    for _ in range(steps - 1):
        to_go.append((left[:, :, :steps] + to_go[-1][None, 1:]).min(2))
    return Outlook(left, measured, np.stack(to_go))


def planned_levels(levels: tuple[tuple[float, float], ...]) -> tuple[tuple[tuple[float, float], ...], tuple[int, ...]]:
    """The levels that are planned on, and the index among them of every step; -1 for one that is never planned full.

    A sampler that looks twice at a level has it once, at both steps. Of a long ladder every n-th level is taken.
    """
    distinct = tuple(dict.fromkeys(levels))
    every = math.ceil(len(distinct) / LARGEST)
    index = {level: at // every if at % every == 0 else -1 for at, level in enumerate(distinct)}
    return distinct[::every], tuple(index[level] for level in levels)
