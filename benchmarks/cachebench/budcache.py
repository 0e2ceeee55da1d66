"""BudCache's question (arXiv:2606.13496): which steps to run in full, searched on the final picture. Pure.

Rebuilt from the paper's description: simulated annealing over masks with a fixed number of full steps, then hill
climbing. The temperatures and the moves are ours, and so is the number of trials, which is every search's here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

Steps = tuple[int, ...]
HOT, COLD = 2.0, 0.1  # dB: a loss this large is taken with a chance of 1 / e
ANNEALED = 0.7  # of the trials; the others only climb
NEAR = 0.5  # of the moves go at most `REACH` steps
REACH = 3


def even(count: int, steps: int) -> Steps:
    """`count` of `steps` steps, evenly spread from 0."""
    return tuple(round(k * steps / count) for k in range(count))


def moved(chosen: Steps, steps: int, rng: random.Random) -> Steps:
    """One full step, never the first, moved to where none is."""
    free = [step for step in range(1, steps) if step not in chosen]
    from_step = rng.choice(chosen[1:])
    near = [step for step in free if abs(step - from_step) <= REACH]
    to_step = rng.choice(near if near and rng.random() < NEAR else free)
    return tuple(sorted({*chosen, to_step} - {from_step}))


def anneal(score: Callable[[Steps], float], count: int, steps: int, trials: int) -> tuple[Steps, float]:
    """The best full steps found, and their score in dB, in exactly `trials` calls of `score`; deterministic.

    Args:
        count: of full steps, at least 2 and below `steps`.
    """
    rng = random.Random(0)
    chosen = best = even(count, steps)
    value = highest = score(chosen)
    hot = max(1, round(ANNEALED * trials))
    for trial in range(1, trials):
        tried = moved(best if trial == hot else chosen, steps, rng)
        found = score(tried)
        temperature = HOT * (COLD / HOT) ** (trial / hot)
        if found >= value or (trial < hot and rng.random() < math.exp((found - value) / temperature)):
            chosen, value = tried, found
        if found > highest:
            best, highest = tried, found
    return best, highest
