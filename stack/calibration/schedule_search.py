"""The search of a schedule for what is asked: at one number of full steps, or at several."""

from __future__ import annotations

from dataclasses import replace

from ..caching.candidate import WHOLE, Candidate
from ..caching.forecast import COORDINATES
from ..core.errors import StackError
from .goals import Goal, full_steps_for, guess
from .progress import BestSoFar
from .search import Found, Scored, one_fewer, one_more, openings, search, spread, through
from .segment_gains import refinable, refined
from .time_budget import STOPPED, SearchBudget
from .trials import Trials

FEW = 8  # trials: a search that time ends before them has hardly left its openings
BESIDE = 2  # numbers of full steps beside the one asked for that are tried once, for the curve
MOVING = 0.6  # share of the time for the search after which no new round of moves begins: gains per segment follow


class ScheduleSearch:
    """Searches at one or several numbers of full steps."""

    def __init__(self, trials: Trials, budget: SearchBudget, bar: BestSoFar):
        self.trials, self.budget, self.bar = trials, budget, bar
        self.asked = 0
        self._each = 0.0  # seconds of a trial

    def reach(self, goal: Goal) -> tuple[Found, float]:
        """The best that was found for the goal, and the score of its uniform start."""
        if goal.min_psnr:
            return self._reach_psnr(goal.min_psnr)
        most = self.budget.trials
        beside = BESIDE if most >= FEW + BESIDE else 0
        found, start = self._at(full_steps_for(goal, self.trials), most - beside, beside)
        if beside:
            self._beside(found.best)
        return found, start

    def _beside(self, best: Candidate) -> None:
        """Measure one full step fewer and one more, each once, for the curve: where there is time for it."""
        trials, full = self.trials, best.full_steps
        beside = [one_fewer(full, trials.steps, trials.always), one_more(full, trials.steps)]
        self.bar.says("the curve beside it")
        trials.restart()
        for other in beside:
            if other == full or not 2 <= len(other) < trials.steps or not self.budget.room(self._each):
                continue
            try:
                trials.score(replace(best, full_steps=other, segments=()))
            except STOPPED as stopped:
                self.budget.stopped(stopped)
                return
            self.asked += 1

    def _reach_psnr(self, psnr: float) -> tuple[Found, float]:
        """From a first guess upwards until the PSNR is reached, or downwards for as long as it is."""
        count, enough, trials = guess(psnr, self.trials), None, max(4, self.budget.trials // 4)
        tried = self._at(count, trials)
        best_db, down = tried[0].score, tried[0].score >= psnr
        while True:
            if tried[0].score >= psnr:
                enough = tried
            if (tried[0].score >= psnr) != down or not self.budget.left() or self.asked >= self.budget.trials:
                break
            count += -1 if down else 1
            if not 2 <= count < self.trials.steps:
                break
            tried = self._at(count, trials)
            best_db = max(best_db, tried[0].score)
        if enough is None:
            raise StackError(
                f"no schedule reached {psnr:g} dB within the budget, the best had {best_db:.1f}: "
                "ask for less, or give it more seconds"
            )
        return enough

    def _at(self, count: int, most: int, beside: int = 0) -> tuple[Found, float]:
        """Search at one number of full steps.

        Args:
            beside: trials that time is kept for, where there is time for a handful as well.
        """
        trials, cache, steps = self.trials, self.trials.cache, self.trials.steps
        trials.restart()
        self.bar.says(f"{count} full steps")
        own = cache.policy
        start = Candidate.of(own, self._first(count))
        there = replace(Candidate.of(own, own.schedule.full_steps), segments=own.schedule.segments)
        always = trials.always
        if not {*always} <= {*there.full_steps}:
            there = replace(there, full_steps=(), segments=())
        began = self.budget.spent

        def left() -> bool:
            made = len(scored.seen)
            self._each = (self.budget.spent - began) / max(1, made)
            kept = made >= FEW or self.budget.room((FEW + beside - made) * self._each)
            return self.budget.room(beside * self._each) if kept else self.budget.left()

        scored = Scored(trials.score, most, left, lambda c, v: self.bar.scored(v))
        varied = bool(own.forecast.effective_order) and not own.forecast.level
        correctable = varied and trials.correctable
        # A corrector wants other schedules than a forecast alone.
        template = replace(start, gains=WHOLE, order=1, corrected=True) if correctable else start
        families = openings(template, steps, always, trials.levels)

        def enough() -> bool:
            return varied and refinable(scored.found().best) and not self.budget.left(MOVING)

        try:
            scored.better(start)
            if len(there.full_steps) == count:
                scored.better(there)
            found = search(scored, start, steps, COORDINATES, enough, varied, families, correctable, always)
            if varied and not scored.spent and refinable(found.best):
                self.bar.says("gains")
                scored.better(refined(found.best, trials.undisturbed, trials.target))
        except STOPPED as stopped:
            if scored.best is None:
                raise
            self.budget.stopped(stopped)
        self.asked += len(scored.seen)
        return scored.found(), scored.seen[start]

    def _first(self, count: int) -> tuple[int, ...]:
        """Where so many full steps are without calibration."""
        trials, own = self.trials, self.trials.cache.policy
        if own.schedule.spread == "even":
            return through(spread(count, trials.steps, 1.0), trials.always)
        made = own.uncalibrated.changed(count=count).schedule_for(trials.steps, (), trials.levels)
        return through(tuple(sorted(made.full_steps(trials.steps))), trials.always)
