"""Prompts that are not searched on: what the search found is checked there, and chosen anew where it does not hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from ..caching.candidate import Candidate
from ..measure.metrics import psnr
from .search import EARLY, Tried, spread, through
from .trajectory import Trajectory, recorder

if TYPE_CHECKING:
    from ..caching.cache import Cache
    from .trials import Trials

AWAY = 10_000  # between the seeds searched on and those checked on, and from one check to the next
PICTURES = 6  # fewest that decide whether a new cache replaces the one that was there, where there is time for them
SURE = 0.95  # that a new cache is better than the one that was there
SEARCHED = 4  # kinds of candidates of a search that are compared where its own choice did not hold


class HeldOut:
    """Pictures of prompts and seeds that are not searched on.

    Args:
        check: 1, 2, ... for other seeds each time.
        times: pictures of every prompt, each of its own seed.
    """

    def __init__(self, trials: Trials, prompts: Sequence[str], check: int = 1, times: int = 1):
        self.trials, self.prompts, self._seed = trials, [*prompts] * times, trials.seed + check * AWAY
        self.target = trials.run(recorder(Trajectory()), self.prompts, self._seed)
        self._known: list[tuple[Cache, list[float]]] = []

    def each(self, cache: Cache) -> list[float]:
        """PSNR in dB of every picture that a cache makes, against the uncached ones; each cache runs once."""
        for other, known in self._known:
            if other == cache:
                return known
        made = self.trials.run(cache, self.prompts, self._seed)
        self._known.append((cache, found := [psnr(*pair) for pair in zip(made, self.target, strict=True)]))
        return found

    def psnr(self, cache: Cache) -> float:
        """Mean of `each`."""
        return fmean(self.each(cache))

    def ahead(self, new: Cache, old: Cache) -> bool:
        """Whether a cache is better than another by more than chance: the lower limit of the mean gain in dB over such
        pictures is above 0 (Student's t, one-sided). One picture is taken at its word."""
        from scipy.special import stdtrit

        gains = [after - before for after, before in zip(self.each(new), self.each(old), strict=True)]
        count = len(gains)
        return fmean(gains) > (float(stdtrit(count - 1, SURE)) * stdev(gains) / math.sqrt(count) if count > 1 else 0.0)

    def wins(self, new: Cache, old: Cache) -> bool:
        """Whether a cache is ahead of another, in pooled error too: that sees pictures whose layout has changed."""
        after, before = (fmean(10 ** (-db / 10) for db in self.each(cache)) for cache in (new, old))
        return after < before and self.ahead(new, old)


def pictures_of_each(prompts: int, seconds: float, picture: float) -> int:
    """How many pictures of so many held-out prompts are compared each: enough for `PICTURES` where they fit."""
    wanted = -(-PICTURES // prompts)
    return next((times for times in range(wanted, 1, -1) if times * prompts * picture <= seconds), 1)


def finalists(tried: Tried, steps: int, most: int = SEARCHED, always: Sequence[int] = ()) -> list[Candidate]:
    """Candidates worth another look, the best one first. Pure.

    A search ends among neighbours of its best candidate, which err alike. What differs is how soon the next full steps
    come and what is forecast, so the best of each such kind is taken. Prompts disagree most where the first steps
    decide a picture's layout, which those searched on may not have shown. So spreads dense at the start are added: on
    shapes-dit, at 12 full steps, one had 33 to 38 dB on 12 other pictures where three searches had 14 to 27.
    """
    start = tried[0][0]
    kinds: dict[tuple[object, ...], Candidate] = {}
    for candidate, _ in sorted(tried, key=lambda pair: -pair[1]):
        kinds.setdefault((candidate.full_steps[1:3], candidate.gains, candidate.order, candidate.corrected), candidate)
    searched = list(kinds.values())[:most]
    dense = [through(spread(len(start.full_steps), steps, power), always) for power in EARLY]
    early = [replace(searched[0], full_steps=full, segments=()) for full in dense]
    return list(dict.fromkeys([*searched, *early, start]))


def chosen_again(
    candidates: Sequence[Candidate],
    searched: Callable[[Candidate], float],
    held: Callable[[Candidate], float],
    weight: float,
    least: float = -math.inf,
) -> tuple[Candidate, float, int]:
    """The candidate with the highest mean PSNR over all prompts.

    Args:
        searched, held: its PSNR in dB on the prompts searched on, and on the held-out ones.
        weight: how many prompts were searched on for each that is held out.
        least: dB asked for on the prompts searched on; where no candidate has them, the first is kept.

    Returns:
        The candidate, its PSNR on the prompts searched on, and how many were compared.
    """
    scores = {candidate: searched(candidate) for candidate in candidates}
    enough = [candidate for candidate in candidates if scores[candidate] >= least] or candidates[:1]
    means = {candidate: weight * scores[candidate] + held(candidate) for candidate in enough}
    best = max(enough, key=lambda candidate: means[candidate])
    return best, scores[best], len(enough)
