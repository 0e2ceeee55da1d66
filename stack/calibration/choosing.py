"""From prompts to a choice: what there is time for, the cache that was there, the search, and the check of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..caching.cache import Cache
from ..core.errors import StackError
from ..core.progress import counted
from ..measure.metrics import mean_psnr
from ..runtime.pipeline_calls import PipelineCalls
from ..runtime.stack_like import StackLike
from .calibration import DISAGREE_DB
from .goals import Goal
from .held_out import HeldOut, chosen_again, finalists, pictures_of_each
from .learned_fit import Estimates, learn
from .progress import BestSoFar
from .schedule_search import FEW, ScheduleSearch
from .search import Tried
from .thresholds import chosen, serves, tuned
from .time_budget import (
    CHECK,
    STOPPED,
    OutOfTime,
    SearchBudget,
    cached_seconds,
    fitting,
    least_seconds,
    picture_seconds,
    too_short,
)
from .trials import Point, Trials, decides_by_threshold

CHECKED = 1 / 2  # most of what is left of the time that several pictures of each held-out prompt may take
FEW_TRIALS = 3  # for which there has to be time, beside what is kept for learning


@dataclass(frozen=True)
class SearchResult:
    """What a search came to: the cache, its full steps and PSNR, the start's PSNR, how many trials it took and, of a
    schedule, which; how many candidates were compared again on held-out prompts; whether time cut it short;
    whether it is the cache that was there; and the kind of corrections that were learnt on top of it."""

    cache: Cache
    full: float
    psnr: float
    start_psnr: float
    trials: int
    tried: Tried = ()
    compared: int = 0
    hurried: bool = False
    kept: bool = False
    learned: str = ""


class Search:
    """One calibration: searches at one or several numbers of full steps.

    Attributes:
        trials: on the prompts that there is time for; set by `all`, as are the others.
        point: what the cache that was there makes of the prompts; `own` is that cache as a choice.
        held: the held-out pictures that decided; None before that.
        estimates: of the uncached runs, where corrections may be learnt.
        used: how many prompts there was time for, held-out ones included.
        times: pictures of each held-out prompt that decide.
    """

    trials: Trials
    point: Point
    own: SearchResult

    def __init__(
        self,
        stack: StackLike,
        cache: Cache,
        calls: PipelineCalls,
        goal: Goal,
        budget: SearchBudget,
        bar: BestSoFar,
        kind: str = "",
    ):
        self.kind = kind
        self.held: HeldOut | None = None
        self.estimates = Estimates()
        self.stack, self.cache, self.calls, self.goal = stack, cache, calls, goal
        self.budget, self.bar = budget, bar
        self.used, self.times = 0, 1

    def all(self, prompts: Sequence[Any], held_out: Sequence[Any], seed: int) -> tuple[SearchResult, float]:
        """The choice, and its PSNR on held-out prompts; NaN where there was no time for these."""
        held_out = self._record(prompts, held_out, seed)
        try:
            choice = self._by_threshold() if decides_by_threshold(self.cache) else self._by_schedule()
        except STOPPED as stopped:
            self.budget.stopped(stopped)
            choice = self.own
        except StackError:
            if not self._serves:
                raise
            choice = self.own
        if choice.kept and not self._serves:
            raise StackError(f"time was over before anything was tried for {self.goal.words}: give it more seconds")
        self.bar.says("checking")
        self.budget.begin_check()
        return self._learnt(*self._checked(choice, held_out))

    def _record(self, prompts: Sequence[Any], held_out: Sequence[Any], seed: int) -> Sequence[Any]:
        """Run what there is time for without the cache, and with it as it was. Returns the held-out prompts."""
        steps, budget = self.stack.plan.facts_after.steps, self.budget
        share = (self.goal.full_steps or len(self.cache.policy.schedule_for(steps).full_steps(steps))) / steps
        self.bar.says("timing one picture")
        try:
            picture = picture_seconds(self.stack, self.calls, prompts[0], seed, steps, budget)
        except OutOfTime:
            what = f"the first steps of one picture take longer than budget={budget.seconds:g}"
            raise StackError(f"{what}: give it more seconds or plan fewer steps") from None
        searched, held = fitting(prompts, held_out, picture, share, budget.seconds, budget.spent)
        self.used = len(searched) + len(held)
        try:
            self.bar.says(f"recording {counted(len(searched), 'picture')}")
            began = budget.spent
            beside = [self.estimates.put_on] if self._learns else []
            self.trials = Trials(self.stack, self.cache, searched, steps, seed, self.calls, beside)
            # Uncached once, with the cache that was there, and with what was found.
            picture = (budget.spent - began) / len(searched)
            one = picture + 2 * cached_seconds(picture, 1, share)
            self.times = pictures_of_each(len(held), CHECKED * (budget.seconds - budget.spent), one)
            check = least_seconds(picture, 0, len(held) * self.times, share)
            budget.keep(min(CHECK * check, budget.seconds - budget.spent))
            self.bar.says("the cache as it is")
            self.point = point = self.trials.as_it_is()
            self._keep_for_learning(cached_seconds(picture, self.used, share))
        except OutOfTime:
            raise too_short(max(picture, budget.spent / len(searched)), budget.seconds, share) from None
        self.goal = self.goal.or_as_before(point.full)
        self.own = SearchResult(self.cache, point.full, point.psnr, point.psnr, 1, hurried=True, kept=True)
        return held

    @property
    def _serves(self) -> bool:
        """Whether the cache that was there does what is asked."""
        return serves(self.point, self.goal)

    def _checked(self, choice: SearchResult, prompts: Sequence[Any]) -> tuple[SearchResult, float]:
        """The choice if it is better than the cache that was there on held-out prompts, by more than chance; else that
        one. And its PSNR on these.

        Where these refute the choice it is made again. Without time for them the prompts searched on decide.
        """
        if self.budget.interrupted:
            return self._unchecked(choice)
        try:
            self.held = held = HeldOut(self.trials, prompts, times=self.times)
            known = held.psnr(choice.cache)
            ours = known if choice.kept else held.psnr(self.own.cache)
            better = not choice.kept and held.ahead(choice.cache, self.own.cache)
        except STOPPED as stopped:
            self.budget.stopped(stopped)
            return self._unchecked(choice)
        if choice.tried and choice.psnr - known >= DISAGREE_DB:
            try:
                again = self._made_again(choice, held)
                other = HeldOut(self.trials, prompts, check=2, times=self.times)
                better = other.ahead(again.cache, self.own.cache)
                choice, known, ours = again, other.psnr(again.cache), other.psnr(self.own.cache)
                self.held = other
            except STOPPED as stopped:
                self.budget.stopped(stopped)
        return (choice, known) if self._replaces(choice, better) else (self._kept(choice), ours)

    def _unchecked(self, choice: SearchResult) -> tuple[SearchResult, float]:
        """The better of the choice and the cache that was there on the prompts searched on."""
        better = self._replaces(choice, choice.psnr > self.own.psnr)
        return choice if better else self._kept(choice), math.nan

    def _keep_for_learning(self, seconds: float) -> None:
        """Keep so much time for learning, where as much is left for a few trials."""
        left = self.budget.seconds - self.budget.spent - self.budget.reserved
        if self._learns and left > (1 + FEW_TRIALS) * seconds:
            self.budget.keep(self.budget.reserved + CHECK * seconds)

    @property
    def _learns(self) -> bool:
        """Whether corrections may be learnt."""
        return bool(self.kind) and self.cache.policy.scheduled and self.cache.policy.correctable

    def _learnt(self, choice: SearchResult, known: float) -> tuple[SearchResult, float]:
        """The choice with learned corrections where these win on the held-out prompts; else as it is."""
        held, truth = self.held, self.estimates.x0
        if held is None or not (self._learns and truth and choice.cache.policy.corrected) or self.budget.interrupted:
            return choice, known
        self.bar.says("learning")
        try:
            plain = choice.cache.changed(learned=None)
            taught, pictures = learn(self.trials, plain, self.kind, truth)
            if not held.wins(taught, choice.cache):
                return choice, known
        except STOPPED as stopped:
            self.budget.stopped(stopped)
            return choice, known
        fitted = mean_psnr(pictures, self.trials.target)
        return replace(choice, cache=taught, psnr=fitted, learned=self.kind, kept=False), held.psnr(taught)

    def _replaces(self, choice: SearchResult, better: bool) -> bool:
        """Whether the choice replaces what was there: that stays if it does what is asked, is as fast and no worse."""
        fewer = bool(self.goal.min_psnr) and choice.full < self.own.full
        return choice.kept or not self._serves or fewer or better

    def _kept(self, choice: SearchResult) -> SearchResult:
        """What was there, after a search that came to this choice."""
        return replace(self.own, start_psnr=choice.start_psnr, trials=choice.trials, hurried=choice.hurried)

    def _made_again(self, choice: SearchResult, held: HeldOut) -> SearchResult:
        """A choice that held-out prompts refute, made again with their say."""
        trials, known_so_far = self.trials, dict(choice.tried)
        best, db, compared = chosen_again(
            finalists(choice.tried, trials.steps, always=trials.always),
            lambda c: known_so_far[c] if c in known_so_far else mean_psnr(trials.undisturbed(c), trials.target),
            lambda c: held.psnr(trials.calibrated(c)),
            len(trials.prompts) / len(held.prompts),
            self.goal.min_psnr,
        )
        return replace(choice, cache=trials.calibrated(best), psnr=db, compared=compared)

    def _by_threshold(self) -> SearchResult:
        self.bar.says("threshold")
        budget, goal = self.budget, self.goal
        best, points = tuned(
            self.trials, goal, lambda made: made < budget.trials and budget.left(), self.bar.scored, budget.stopped
        )
        point = chosen(points, goal)
        return SearchResult(best, point.full, point.psnr, points[0].psnr, len(points))

    def _by_schedule(self) -> SearchResult:
        search = ScheduleSearch(self.trials, self.budget, self.bar)
        found, start = search.reach(self.goal)
        best = self.trials.calibrated(found.best)
        hurried = search.asked < min(FEW, self.budget.trials) and not self.budget.left()
        return SearchResult(best, len(best.full_steps), found.score, start, search.asked, found.trials, hurried=hurried)
