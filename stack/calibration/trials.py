"""The runs of a calibration: the uncached pictures once, then trials judged against them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from ..caching.cache import Cache
from ..caching.candidate import Candidate
from ..caching.repairs import can_correct
from ..core.installer import Installer
from ..core.passes import Applied
from ..measure.metrics import mean_psnr
from ..measure.timing import timed
from ..runtime.pipeline_calls import PipelineCalls
from ..runtime.stack_like import StackLike
from ..runtime.target import Target
from .curve import QualityCurve
from .observe import Observe
from .rehearse import Abandoned, Rehearsal, Rehearsals, decibels, rehearsable
from .trajectory import Trajectory, recorder
from .x0_trials import X0Rehearsal, x0_recorder

TIMED = (1, 2)  # steps that reuse step 0 in the run that is timed


@dataclass(frozen=True)
class Point:
    """What a threshold gave.

    Attributes:
        factor: of the cache's own threshold.
        psnr: in dB, mean over all prompts.
        full: full steps of a picture, on average.
        seconds: of a picture, on average.
    """

    factor: float
    psnr: float
    full: float
    seconds: float


def decides_by_threshold(cache: Cache) -> bool:
    """Whether it is a threshold that sets the cache's pace, rather than a schedule."""
    return bool(cache.policy.gate) or cache.policy.site.threshold_scaled(1.0) is not None


def _together(first: Observe, more: Sequence[Callable[[Target, Installer], None]]) -> Observe:
    """Several observers of one run."""

    def put_on(target: Target, install: Installer) -> Applied | None:
        for observe in more:
            observe(target, install)
        return first.put_on(target, install)

    return Observe(put_on)


@dataclass(frozen=True)
class Times:
    """Seconds of one picture's run: a full step, a cached step, and the uncached run as a whole."""

    full: float
    cached: float
    uncached: float


class Trials:
    """Trials of one cache on a stack, for these prompts.

    Everything the stack is besides its cache stays as it is. The caller puts a cache back when it is done. What is
    measured is also kept by its number of full steps, in `curve`.

    Args:
        seed: of the first prompt; the others follow.
        calls: how the pipeline is called; by default with prompts and seeds alone.
        beside: further observers of the uncached runs.
    """

    def __init__(
        self,
        stack: StackLike,
        cache: Cache,
        prompts: Sequence[str],
        steps: int,
        seed: int,
        calls: PipelineCalls | None = None,
        beside: Sequence[Callable[[Target, Installer], None]] = (),
    ):
        self.calls = calls or PipelineCalls(stack.pipe)
        self.stack, self.cache, self.prompts, self.steps, self.seed = stack, cache, prompts, steps, seed
        self._x0 = cache.policy.site.forecasts_x0
        self._recorder = x0_recorder if self._x0 else recorder
        self.device = torch.device(stack.facts.machine.device)
        plain = Trajectory()
        self.target = self.run(_together(self._recorder(plain), beside))
        self.sigmas, self.levels = stack.sigmas, stack.clock.sigma_schedule.levels
        self.shared = Rehearsals(plain)
        self.curve = QualityCurve()
        self._best = float("-inf")
        self._points: dict[float, Point] = {}  # by factor

    @property
    def always(self) -> tuple[int, ...]:
        """Steps beside the first that run in full whatever is tried."""
        return self.shared.plain.takeovers

    @property
    def correctable(self) -> bool:
        """Whether full steps could put right what this cache's forecasts leave."""
        facts, p = self.stack.plan.facts_after, self.cache.policy
        return p.scheduled and p.correctable and p.site.calibrates_corrector and can_correct(facts)

    def run(self, in_place: Any, prompts: Sequence[str] = (), seed: int | None = None) -> torch.Tensor:
        """Pictures (B, 3, H, W) or videos (B, F, 3, H, W) in [0, 1] with this pass in the cache's place.

        Args:
            prompts: by default the trials' own.
        """
        self.stack.replace(in_place)
        which, first = prompts or self.prompts, self.seed if seed is None else seed
        return self.calls.make(self.stack, which, first, self.steps)

    def calibrated(self, candidate: Candidate) -> Cache:
        """The cache with a candidate's choices, for the sampler's own times."""
        return self.cache.calibrated(candidate, self.steps, self.sigmas)

    def pictures(self, candidate: Candidate) -> torch.Tensor:
        """Pictures of a candidate.

        Raises:
            Abandoned: it is not worth finishing.
        """
        cache = self.cache.calibrated(candidate, self.steps)
        if self._x0:
            return self.run(Observe(X0Rehearsal(cache, candidate, self.shared).put_on))
        if rehearsable(cache.policy):
            return self.run(Observe(Rehearsal(cache, candidate, self.shared).put_on))
        return self.run(cache)

    def score(self, candidate: Candidate) -> float:
        """Mean PSNR in dB against the uncached pictures; estimated for a candidate that is given up."""
        try:
            value = mean_psnr(self.pictures(candidate), self.target)
        except Abandoned as astray:
            self.curve.add(len(candidate.full_steps), None)
            return self._best - decibels(astray.ratio)
        self.curve.add(len(candidate.full_steps), value)
        if value > self._best:
            self._best, self.shared.bar = value, list(self.shared.deviations)
        return value

    def as_it_is(self) -> Point:
        """What the cache makes of the prompts as it was given: all at once under a schedule."""
        if decides_by_threshold(self.cache):
            return self.measured(self.cache, 1.0)
        made, seconds = timed(partial(self.run, self.cache), self.device)
        full = {
            *self.cache.policy.schedule_for(self.steps, self.sigmas, self.levels).full_steps(self.steps),
            *self.always,
        }
        point = Point(1.0, mean_psnr(made, self.target), len(full), seconds / len(self.prompts))
        self.curve.add(point.full, point.psnr)
        return point

    def measured(self, cache: Cache, factor: float) -> Point:
        """What a cache with a gate makes of every prompt, one by one: gates decide picture by picture."""
        if factor not in self._points:
            self._points[factor] = self._measured(cache, factor)
        return self._points[factor]

    def _measured(self, cache: Cache, factor: float) -> Point:
        made, full, spent, count = [], 0.0, 0.0, len(self.prompts)
        for number, prompt in enumerate(self.prompts):
            picture, seconds = timed(partial(self.run, cache, [prompt], self.seed + number), self.device)
            made.append(picture)
            report = self.stack.report()
            full, spent = full + report.full_steps_each, spent + seconds
        point = Point(factor, mean_psnr(torch.cat(made), self.target), full / count, spent / count)
        self.curve.add(point.full, point.psnr)
        return point

    def restart(self) -> None:
        """Trials from here on are not held against the best one so far: another number of full steps begins."""
        self._best, self.shared.bar = float("-inf"), []

    def undisturbed(self, candidate: Candidate) -> torch.Tensor:
        """Pictures of a candidate, finished whatever they are."""
        bar, self.shared.bar = self.shared.bar, []
        try:
            return self.pictures(candidate)
        finally:
            self.shared.bar = bar

    @cached_property
    def times(self) -> Times:
        """Measured in one run of one picture, of which two steps are cached."""
        observer = self._recorder(Trajectory(), TIMED)
        _, uncached = timed(partial(self.run, observer, self.prompts[:1]), self.device)
        cached = min(r.seconds for r in self.stack.report().steps if r.step in TIMED)
        per_step = (uncached - len(TIMED) * cached) / (self.steps - len(TIMED))
        return Times(per_step, cached, uncached)
