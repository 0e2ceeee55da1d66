"""Which of the measured stacks matter: those that nothing beats in both time and quality."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .limits import Limits
from .study import Tried

SLACK = 0.03  # candidates so far beyond a limit, relatively, may still keep it on other prompts: 1 dB of 38


def quality(one: Tried) -> float:
    """Larger is better: PSNR in dB, or the negative error of latents."""
    figures = one.figures
    if figures.psnr is not None:
        return figures.psnr
    return -math.inf if figures.error is None else -figures.error


def pareto(found: Sequence[Tried]) -> list[Tried]:
    """Those that no other beats in both speedup and quality, the fastest first."""
    front: list[Tried] = []
    for one in sorted(found, key=lambda each: (-each.figures.speedup, -quality(each))):
        if not front or quality(one) > quality(front[-1]):
            front.append(one)
    return front


def finalists(found: Sequence[Tried], limits: Limits, most: int) -> list[Tried]:
    """The candidates to measure on held-out prompts: within the limits or nearly, the cheapest first; within them first
    those that no other beats in both time and quality, as held-out prompts may ask for more quality.

    Half of the places at most go to those that are beyond a limit by little; with fewer within the limits than places,
    the nearest to them fill up. Of candidates with the same stages there is one.
    """
    different = [one for number, one in enumerate(found) if one.stages not in [o.stages for o in found[:number]]]
    cheap = sorted(different, key=lambda one: limits.cost(one.figures))
    front = pareto([one for one in cheap if not one.excess])
    within = [*front, *(one for one in cheap if not one.excess and one not in front)]
    nearly = [one for one in cheap if 0 < one.excess <= SLACK][: most // 2]
    chosen = [*nearly, *within][:most]
    rest = sorted(
        (one for one in different if one not in chosen), key=lambda one: (one.excess, limits.cost(one.figures))
    )
    return [*chosen, *rest[: most - len(chosen)]]


def best(checked: Sequence[Tried], limits: Limits) -> Tried | None:
    """The cheapest within the limits; where none is, the nearest to them."""
    return min(checked, key=lambda one: (one.excess, limits.cost(one.figures)), default=None)
