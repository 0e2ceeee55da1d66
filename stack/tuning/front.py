"""Which of the measured stacks matter: those that nothing beats in both time and quality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest

from .limits import Limits
from .study import Tried

NOISE = 0.05  # of a speed: the same stack differs by 4 % between runs
FASTER = 1.02  # times as fast
SLACK = 0.03  # candidates so far beyond a limit, relatively, may still keep it on other prompts: 1 dB of 38


def quality(one: Tried) -> float:
    """Larger is better: PSNR in dB, or the negative error of latents."""
    figures = one.figures
    if figures.psnr is not None:
        return figures.psnr
    return -math.inf if figures.error is None else -figures.error


def beats(one: Tried, other: Tried) -> bool:
    """Whether it is faster than another, and no worse."""
    return one.figures.speedup > FASTER * other.figures.speedup and quality(one) >= quality(other)


def different(found: Sequence[Tried]) -> list[Tried]:
    """Of candidates with the same stages the first."""
    return [one for number, one in enumerate(found) if one.stages not in [o.stages for o in found[:number]]]


def pareto(found: Sequence[Tried], noise: float = 0.0) -> list[Tried]:
    """Those that no other beats in both speedup and quality, the fastest first.

    Args:
        noise: relative; of two whose speeds differ by less, the one of better quality.
    """
    front: list[Tried] = []
    for one in sorted(found, key=lambda each: (-each.figures.speedup, -quality(each))):
        if not front or quality(one) > quality(front[-1]):
            front.append(one)
    slower = zip_longest(front, front[1:])  # each with the next better one
    return [one for one, better in slower if not better or better.figures.speedup < (1 - noise) * one.figures.speedup]


def finalists(found: Sequence[Tried], limits: Limits, most: int) -> list[Tried]:
    """The candidates to measure on held-out prompts: within the limits or nearly, the cheapest first; within them first
    those that no other beats in both time and quality, as held-out prompts may ask for more quality.

    A third of the places at most goes to those that are beyond a limit by little; with fewer within the limits than
    places, the nearest to them fill up. Of candidates with the same stages there is one.
    """
    candidates = different(found)
    cheap = sorted(candidates, key=lambda one: limits.cost(one.figures))
    front = pareto([one for one in cheap if not one.excess], NOISE)
    within = [*front, *(one for one in cheap if not one.excess and one not in front)]
    nearly = [one for one in cheap if 0 < one.excess <= SLACK][: most // 3]
    chosen = [*nearly, *within][:most]
    rest = sorted(
        (one for one in candidates if one not in chosen), key=lambda one: (one.excess, limits.cost(one.figures))
    )
    return [*chosen, *rest[: most - len(chosen)]]


def best(checked: Sequence[Tried], limits: Limits) -> Tried | None:
    """The cheapest within the limits, of those that are as fast the one of best quality; where none is within them, the
    nearest to them."""
    first = min(checked, key=lambda one: (one.excess, limits.cost(one.figures)), default=None)
    if first is None or first.excess or not limits.on_quality:
        return first
    least = (1 - NOISE) * first.figures.speedup
    return max((one for one in checked if not one.excess and one.figures.speedup >= least), key=quality)
