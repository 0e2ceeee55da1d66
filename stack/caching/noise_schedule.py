"""Where full steps go, read off a sampler's noise levels: the schedule that would be best for Gaussian data.

For Gaussian data the denoiser is known in closed form, one mode of variance v at a time. At signal a and noise s a
sample of that mode has the size r = sqrt(a^2 v + s^2), its estimate of the clean sample is x0 = (a v / r^2) x, and a
disturbance of the sample reaches the end multiplied by sqrt(v) / r, relative to the finished mode. A step of a
deterministic sampler is x' = (s'/s) x + (a' - a s'/s) x0 with x0 held, so the error that a run of cached steps leaves
is a sum over those steps, known before anything runs: of what the corrector's interpolation of x0 misses, and of what
the forecast was off when the next full step saw it. Modes of v = exp(-3) to exp(5.5) stand for pictures: large shapes
are far stronger than noise, the finest details far weaker, and a picture's energy is about evenly spread over log v (a
power spectrum 1/f^2). The full steps with the smallest sum of squared errors are a shortest path. `docs/methods.md`
derives it.

The strongest modes are decided first, within the first few steps: they are a picture's layout. Where there are fewer
than 10 full steps the strongest ones are left out, since with so few they come out wrong however many steps they get.

Only ratios of signal to noise enter: the rule serves flows of any shift, DDIM, EDM's sigmas and lists of few levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from .schedules import Schedule

Levels = Sequence[tuple[float, float]]
"""(unshifted time, log of signal over noise) of every step."""

# Log variances of the modes. They and SEEN were chosen on prompts and seeds that no table shows.
WEAKEST = -3.0
STRONGEST, STRONGEST_OF_FEW = 5.5, 1.5  # of MANY full steps and more, and of FEW and less
MANY, FEW = 10, 6
SEEN = 0.3  # weight of what a full step is off because it saw a forecast's latent, against what interpolation misses
MODES = 16
LARGEST = 128  # steps of a ladder that is planned on as it is; a longer one is thinned out
CLEAN = 1e-4  # noise behind the last step, of the signal


@dataclass(frozen=True)
class ByNoise:
    """As many full steps as another schedule has, at the places that are best for Gaussian data.

    Attributes:
        even: the schedule whose number of full steps is taken.
        levels: of the request; () takes those of a flow without a shift.
        order: of the forecast: 0 is reuse, any other is taken for 1.
        corrected: whether full steps correct the forecasts before them.
        switches: shares of the schedule at which a step is full whatever the rule says.
    """

    even: Schedule
    levels: tuple[tuple[float, float], ...] = ()
    order: int = 1
    corrected: bool = True
    switches: tuple[float, ...] = ()

    def full_steps(self, steps: int) -> frozenset[int]:
        """The full steps of a request of this length."""
        fixed = frozenset(at for share in self.switches if 0 < (at := round(share * steps)) < steps)
        count = max(len(self.even.full_steps(steps)), 1 + len(fixed))
        levels = self.levels if len(self.levels) == steps else flow_levels(steps)
        # Samplers that look twice at a noise level: what is full there is full both times.
        distinct = tuple(dict.fromkeys(levels))
        share = len(distinct) / steps
        order, fixed = min(self.order, 1), frozenset(distinct.index(levels[at]) for at in fixed)
        places = best_places(max(1, round(count * share)), distinct, order, self.corrected, fixed)
        full = {distinct[at] for at in places}
        return frozenset(at for at, level in enumerate(levels) if level in full)


def flow_levels(steps: int) -> tuple[tuple[float, float], ...]:
    """Levels of a flow without a shift: times 1, 1 - 1/S, ..., 1/S."""
    times = [1 - i / steps for i in range(steps)]
    return tuple((u, math.log((1 - u) / u) if u < 1 else -math.inf) for u in times)


@lru_cache(maxsize=64)
def best_places(
    count: int,
    levels: tuple[tuple[float, float], ...],
    order: int = 1,
    corrected: bool = True,
    fixed: frozenset[int] = frozenset(),
    strongest: float | None = None,
) -> tuple[int, ...]:
    """The `count` full steps, 0 first, whose cached steps leave the least error on Gaussian data.

    Args:
        fixed: steps that have to be among them.
        strongest: log variance of the strongest mode; None takes what suits the count, see `strongest_of`.
    """
    steps = len(levels)
    if count >= steps:
        return tuple(range(steps))
    if steps > LARGEST:
        return _thinned(count, levels, order, corrected, fixed, strongest)
    costs = GapCosts(levels, order, corrected, strongest_of(count) if strongest is None else strongest)
    return _shortest(count, steps, costs, sorted(fixed))


def least_error(count: int, levels: tuple[tuple[float, float], ...], order: int, corrected: bool) -> float:
    """Squared error of finished Gaussian data with the full steps of `best_places`; 0 where every step is full."""
    steps = len(levels)
    costs = GapCosts(levels, order, corrected)
    full = (-1, *best_places(count, levels, order, corrected), steps)
    gaps = zip(full, full[1:], full[2:], strict=False)
    return sum(float(costs.segments(np.array([h]), i, np.array([j]))[0, 0]) for h, i, j in gaps)


def strongest_of(count: int) -> float:
    """Log variance of the strongest mode that so many full steps are placed for."""
    share = min(1.0, max(0.0, (count - FEW) / (MANY - FEW)))
    return STRONGEST_OF_FEW + share * (STRONGEST - STRONGEST_OF_FEW)


def _thinned(
    count: int, levels: Levels, order: int, corrected: bool, fixed: frozenset[int], strongest: float | None
) -> tuple[int, ...]:
    """Places on every n-th step of a long ladder; what is missing of the count is put in the widest gaps."""
    every = math.ceil(len(levels) / LARGEST)
    some = min(count, math.ceil(len(levels) / every))
    thin = best_places(some, tuple(levels[::every]), order, corrected, strongest=strongest)
    places = {at * every for at in thin} | fixed
    while len(places) < count:
        ends = [*sorted(places), len(levels)]
        gap, start = max((b - a, a) for a, b in pairwise(ends))
        places.add(start + gap // 2)
    return tuple(sorted(places))


def _shortest(count: int, steps: int, costs: GapCosts, fixed: Sequence[int]) -> tuple[int, ...]:
    """The path of `count` full steps from 0 with the least sum of costs; states are (full step before, full step)."""
    total = np.full((steps + 1, steps), np.inf)  # the step before is shifted by one: row 0 is "none"
    total[0, 0] = 0.0
    cost = costs.table(fixed)
    came: list[np.ndarray] = []
    for _ in range(count - 1):
        ways = total[:, :, None] + cost[:, :, :steps]
        best = ways.argmin(0)  # over the step before, for every (full step, next full step)
        came.append(best)
        total = np.concatenate([np.full((1, steps), np.inf), np.take_along_axis(ways, best[None], 0)[0]])
    before, at = np.unravel_index(int((total + cost[:, :, steps]).argmin()), total.shape)
    path = [int(at)]
    for best in reversed(came):
        before, at = best[before - 1, at], before - 1
        path.append(int(at))
    return tuple(reversed(path))


class GapCosts:
    """Squared error that the cached steps between two full ones leave in finished Gaussian data, mean over its modes.

    The arrays have a row per step and a last one for the end, and a column per mode. Estimates and disturbances are in
    units of the finished mode.

    Args:
        strongest: log variance of the strongest mode.
    """

    def __init__(self, levels: Levels, order: int, corrected: bool, strongest: float = STRONGEST):
        self.steps, self.order, self.corrected = len(levels), order, corrected
        log_snr = np.array([level for _, level in levels])
        self.x = np.array([time for time, _ in levels])
        signal = np.append(1 / np.sqrt(1 + np.exp(np.minimum(-2 * log_snr, 60.0))), 1.0)
        self.noise = np.append(1 / np.sqrt(1 + np.exp(np.minimum(2 * log_snr, 60.0))), CLEAN)
        v = np.exp(np.linspace(WEAKEST, strongest, MODES))
        size = np.sqrt(signal[:, None] ** 2 * v + self.noise[:, None] ** 2)
        self.x0 = signal[:-1, None] * np.sqrt(v) / size[:-1]
        self.answer = signal[:-1, None] * v / size[:-1] ** 2  # d x0 / d x
        self.reach = np.sqrt(v) / size
        self.adds = signal[1:] - signal[:-1] * self.noise[1:] / self.noise[:-1]
        # What steps i..j-1 add to x_j is noise_j times a difference of these running sums.
        weights = self.adds / self.noise[1:]
        self.sum = _running(weights[:, None])
        self.sum_x = _running((weights * self.x)[:, None])
        self.sum_x0 = _running(weights[:, None] * self.x0)

    def table(self, fixed: Sequence[int]) -> np.ndarray:
        """Cost of (full step before + 1, full step, next full step or the end); infinite where none can be."""
        steps = self.steps
        table = np.full((steps + 1, steps, steps + 1), np.inf)
        for at in range(steps):
            until = next((step for step in fixed if step > at), steps)  # a fixed step is not passed by
            to = np.arange(at + 1, until + 1)
            before = np.arange(at) if at else np.array([-1])
            table[np.ix_(before + 1, np.array([at]), to)] = self.segments(before, at, to)[:, None]
        return table

    def forecasts(self, before: np.ndarray, at: int, to: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the latent at `to` is off by, (before, to, mode), after the cached steps behind the full step `at`.

        Returns:
            With the forecasts as they are; with the interpolation between `at` and `to` (without `before`); and the
            weight in it of the estimate at `to`.
        """
        noise = self.noise[to][:, None]
        added, added_x, truth = (noise * (total[to] - total[at + 1]) for total in (self.sum, self.sum_x, self.sum_x0))
        ahead = added_x - added * self.x[at]  # what a slope of 1 would have added
        forecast = truth - added * self.x0[at] - self._slope(before, at)[:, None] * ahead
        last = np.minimum(to, self.steps - 1)
        late = ahead / np.where(last > at, self.x[last] - self.x[at], 1.0)[:, None]
        missed = truth - added * self.x0[at] - late * (self.x0[last] - self.x0[at])
        return forecast, missed, late

    def segments(self, before: np.ndarray, at: int, to: np.ndarray) -> np.ndarray:
        """GapCosts (before, to) of the cached steps between full steps `at` and `to`."""
        reach, (forecast, missed, late) = self.reach[to], self.forecasts(before, at, to)
        if not self.corrected:
            return ((np.abs(forecast) * reach) ** 2).mean(-1)
        inside = to < self.steps
        last = np.minimum(to, self.steps - 1)
        # The estimate at `to` was made for a latent that is off by the forecast's error. It counts in the
        # interpolation, in its own step, and in about half of as many cached steps behind it.
        uses = late + (self.adds[last] * (1 + (to - at) / 2))[:, None]
        seen = np.abs(uses * self.answer[last] * forecast)
        corrected = np.abs(missed) + SEEN * seen
        return ((np.where(inside[:, None], corrected, np.abs(forecast)) * reach) ** 2).mean(-1)

    def measured(self, before: np.ndarray, at: int, to: np.ndarray) -> np.ndarray:
        """What a full step `to` measures (before, to) of the forecasts behind `at`: see `Outlook.measured`."""
        if self.corrected:
            forecast, missed, _ = self.forecasts(before, at, to)
            added = (self.noise[to] * (self.sum[to] - self.sum[at + 1])[:, 0])[:, None]
            added = np.where(added == 0, 1.0, added)  # no step between: nothing is missed either
            return (((forecast - missed) / added) ** 2).mean(-1)
        guess = self.x0[at] + self._slope(before, at)[:, None] * (self.x[to] - self.x[at])[:, None]
        return ((self.x0[to] - guess) ** 2).mean(-1)

    def unfollowed(self) -> np.ndarray:
        """What an error of 1 of all estimates between a full step and the next (from, to) leaves in the sample."""
        added = self.noise[None] * (self.sum[None, :, 0] - self.sum[1:, :])
        return np.triu(added**2 * (self.reach**2).mean(1), 1)

    def _slope(self, before: np.ndarray, at: int) -> np.ndarray:
        """Of the forecasts behind `at`, (before, mode)."""
        if not self.order or before[0] < 0:
            return np.zeros((len(before), MODES))
        return (self.x0[at] - self.x0[before]) / (self.x[at] - self.x[before])[:, None]


def _running(values: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
