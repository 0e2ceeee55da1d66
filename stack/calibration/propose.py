"""Schedules to try: the exact best under predicted errors, whose weights over time are learnt from what was tried.

Prediction leaves out how errors feed back, which makes some stretches of time matter more than the sampler alone says.
Every finished picture shows its true error; from those, one weight per stretch is fitted, and the next proposal is the
best schedule under the new weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..caching.candidate import Candidate
from .search import Tried
from .theory import best_schedule
from .trajectory import SegmentErrors, segments

STRETCHES = 5


def learn_weights(costs: np.ndarray, errors: Sequence[float], prior: float = 0.2) -> np.ndarray:
    """Non-negative weights w (K,) with costs w about errors, relatively; pulled towards one common weight.

    Args:
        costs: (T, K) predicted error of each trial, by stretch of time.
        errors: measured error of each trial.
        prior: how strongly the weights hold together; small data must not turn a stretch off.
    """
    measured = np.asarray(errors, dtype=float)
    rows = costs / measured[:, None]
    sums = rows.sum(1)
    common = float(sums.sum() / (sums @ sums))  # the one weight that fits best
    unit = rows * common
    pull = prior * np.eye(costs.shape[1])
    left, right = np.vstack([unit, pull]), np.concatenate([np.ones(len(unit)), pull @ np.ones(costs.shape[1])])
    found, *_ = np.linalg.lstsq(left, right, rcond=None)
    return common * np.maximum(found, 0.05)


class Proposer:
    """Proposes full steps for one forecast, until it proposes the same again or has had its rounds.

    Args:
        errors: predicted errors of that forecast.
        start: a candidate with that forecast; where its own schedule has not been tried, it is proposed first.
    """

    def __init__(self, errors: SegmentErrors, start: Candidate, steps: int, rounds: int = 7):
        self.errors, self.start, self.steps, self.rounds = errors, start, steps, rounds

    def __call__(self, trials: Tried) -> Candidate | None:
        """The next candidate, given what was tried so far and its PSNR in dB."""
        tried = {c: score for c, score in trials if replace(c, full_steps=()) == replace(self.start, full_steps=())}
        if len(tried) >= self.rounds:
            return None
        if not tried:
            return self.start
        costs = np.array([self._by_stretch(candidate.full_steps) for candidate in tried])
        weights = learn_weights(costs, [10 ** (-score / 10) for score in tried.values()])
        path, cost = best_schedule(
            lambda h, i, j: weights[self._stretch(i)] * self.errors.cost(h, i, j),
            len(self.start.full_steps),
            self.steps,
        )
        proposal = replace(self.start, full_steps=path)
        return None if proposal in tried or math.isinf(cost) else proposal

    def _stretch(self, step: int) -> int:
        return step * STRETCHES // self.steps

    def _by_stretch(self, full_steps: Sequence[int]) -> list[float]:
        sums = [0.0] * STRETCHES
        for h, i, j in segments(full_steps, self.steps):
            sums[self._stretch(i)] += self.errors.cost(h, i, j)
        return sums
