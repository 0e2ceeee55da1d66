"""Calibration: choose the full steps and the forecast of a cache by the final picture, on the stack as it really is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..caching.cache import Cache
from ..caching.calibrated_for import conditions
from ..caching.candidate import WHOLE, Candidate
from ..core.errors import StackError
from ..measure.metrics import psnr
from ..runtime.stack_like import StackLike
from .goals import Goal, full_steps_for, guess
from .held_out import HeldOut, chosen_again, finalists
from .progress import BestSoFar
from .propose import Proposer
from .search import Found, Scored, Tried, openings, search, spread
from .segment_gains import refinable, refined
from .thresholds import chosen, decides_by_threshold, tuned
from .trials import Trials

DISAGREE_DB = 3.0  # more than this between calibration and held-out prompts means the search has fitted its prompts
FEW = 8  # trials: a search that time ends before them has hardly left its openings
MOVING = 0.6  # share of the time for the search after which no new round of moves begins: gains per segment follow


@dataclass(frozen=True)
class Calibration:
    """What a calibration found. PSNR in dB, on pictures in [0, 1], against the same stack without its cache.

    Attributes:
        cache: the cache with what was chosen.
        full: full steps of a request, on average.
        psnr_db, held_out_psnr_db: of that, on the prompts searched on and on others.
        start_psnr_db: of the start, on the prompts searched on: evenly spread full steps with the cache's own forecast,
            or the cache's own threshold.
        remembered: share of the trials' full steps that an earlier trial had computed.
        compared: candidates between which the held-out prompts decided as well, because they disagreed with the best of
            the search; `held_out_psnr_db` is then that of the same prompts with other seeds. 0 if they agreed.
        hurried: whether time ended the search of a schedule before it had made a handful of trials, as a busy machine
            or long requests make it.
    """

    cache: Cache
    steps: int
    full: float
    psnr_db: float
    held_out_psnr_db: float
    start_psnr_db: float
    trials: int
    seconds: float
    remembered: float = 0.0
    compared: int = 0
    hurried: bool = False

    @property
    def full_steps(self) -> tuple[int, ...]:
        """The steps that run in full; empty where a gate decides."""
        return self.cache.full_steps

    @property
    def generalises(self) -> bool:
        """Whether held-out prompts agree with the ones searched on."""
        return self.psnr_db - self.held_out_psnr_db < DISAGREE_DB

    def __str__(self) -> str:
        again = f"; chosen again among {self.compared}, as held-out prompts disagreed" if self.compared else ""
        doubt = "" if self.generalises else "; WARNING: held-out prompts disagree, give it more prompts"
        if self.hurried:
            doubt += f"; WARNING: time for {self.trials} trials only, give it more seconds or a quieter machine"
        return (
            f"{self.full:.3g} of {self.steps} steps full{self._chosen()}; {self.psnr_db:.1f} dB on its prompts, "
            f"{self.held_out_psnr_db:.1f} dB held out, {self.start_psnr_db:.1f} dB at the start; "
            f"{self.trials} trials in {self.seconds:.0f} s, {self.remembered:.0%} of their full steps remembered"
            f"{again}{doubt}"
        )

    def _chosen(self) -> str:
        p = self.cache.policy
        own, forecast = p.schedule, p.forecast
        if not own.full_steps:
            return f" on average; {p.gate.bound if p.gate else p.site.bound}"
        each = f", by segment {' '.join(f'{g:g}' for g in own.segments)}" if own.segments else ""
        gains = f"order {forecast.order} in {forecast.coordinate}, gains {forecast.gains[0]:g} / {forecast.gains[1]:g}"
        righted = ", corrected" if p.corrected else ""
        return f": {' '.join(map(str, own.full_steps))}; {gains}{each}{righted}"


class SearchBudget:
    """What a calibration may spend.

    Args:
        trials: runs of all prompts.
        seconds: in all, the check on held-out prompts included.
    """

    def __init__(self, trials: int, seconds: float):
        self.trials, self.seconds, self.started = trials, seconds, time.monotonic()
        self.reserved = 0.0

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def left(self, share: float = 1.0) -> bool:
        """Whether this share of the time for trials has not passed."""
        return self.spent < share * (self.seconds - self.reserved)


def calibrate(
    stack: StackLike,
    prompts: Sequence[str],
    held_out: Sequence[str],
    goal: Goal,
    seed: int = 0,
    budget: SearchBudget | None = None,
    progress: bool = True,
    theory: bool = True,
) -> tuple[Cache, Calibration]:
    """Search a schedule, or a threshold, for the cache of a stack with a pipeline; leaves the stack with the best on.

    The prompts' uncached runs are recorded once. For a cache with a schedule, full steps are proposed from them
    (`Proposer`), and finished pictures decide; see `search`. With what time is left each run of cached steps gets a
    gain of its own. For a cache with a gate, its threshold is bisected; see `thresholds.tuned`.

    Args:
        theory: whether to try proposed schedules first, rather than spreads.

    Raises:
        StackError: no cache in the stack, no pipeline, fewer than two prompts, or a goal that cannot be reached. The
            stack's cache is then as it was.
    """
    budget = budget or SearchBudget(60, 60.0)
    steps = stack.plan.facts_after.steps
    cache = next((p for p in stack.passes if isinstance(p, Cache)), None)
    refuse(stack, cache, prompts, held_out)
    assert cache is not None
    goal = goal.or_as_before(len(cache.schedule_for(steps).full_steps(steps)), steps)
    if cache.policy.site.decides and goal.full_steps:
        raise StackError(f"{cache.method} decides block by block, it has no full steps: expected psnr= or seconds=")
    try:
        with BestSoFar(budget.trials, progress) as bar:
            trials = Trials(stack, cache, prompts, steps, seed)
            # Uncached once, and once with the cache.
            budget.reserved = 1.2 * len(held_out) * trials.recording_s / len(prompts)
            if decides_by_threshold(cache):
                choice = _by_threshold(trials, goal, budget, bar)
            else:
                choice = _by_schedule(_Run(trials, budget, bar, theory), goal)
            bar.says("checking")
            choice, held = _checked(choice, trials, held_out, goal.psnr)
            best = choice.cache.changed(calibrated_for=conditions(stack.plan.facts_after))
    finally:
        stack.replace(cache)
    stack.replace(best)
    shared = trials.shared
    return best, Calibration(
        cache=best,
        steps=steps,
        full=choice.full,
        psnr_db=choice.psnr,
        held_out_psnr_db=held,
        compared=choice.compared,
        hurried=choice.hurried,
        start_psnr_db=choice.start_psnr,
        trials=choice.trials,
        seconds=budget.spent,
        remembered=shared.remembered / max(1, shared.remembered + shared.computed),
    )


@dataclass(frozen=True)
class _Choice:
    """What a search came to: the cache, its full steps and PSNR, the start's PSNR, how many trials it took and, of a
    schedule, which; how many candidates were compared again on held-out prompts; and whether time cut it short."""

    cache: Cache
    full: float
    psnr: float
    start_psnr: float
    trials: int
    tried: Tried = ()
    compared: int = 0
    hurried: bool = False


def _checked(choice: _Choice, trials: Trials, prompts: Sequence[str], least: float) -> tuple[_Choice, float]:
    """The choice and its PSNR on held-out prompts; made again where these disagree with it."""
    held = HeldOut(trials, prompts)
    known = held.psnr(choice.cache)
    if not choice.tried or choice.psnr - known < DISAGREE_DB:
        return choice, known
    known_so_far = dict(choice.tried)
    best, db, compared = chosen_again(
        finalists(choice.tried, trials.steps),
        lambda c: known_so_far[c] if c in known_so_far else psnr(trials.undisturbed(c), trials.target),
        lambda c: held.psnr(trials.calibrated(c)),
        len(trials.prompts) / len(prompts),
        least,
    )
    again = replace(choice, cache=trials.calibrated(best), psnr=db, compared=compared)
    return again, HeldOut(trials, prompts, check=2).psnr(again.cache)


def _by_threshold(trials: Trials, goal: Goal, budget: SearchBudget, bar: BestSoFar) -> _Choice:
    bar.says("threshold")
    best, points = tuned(trials, goal, lambda made: made < budget.trials and budget.left(), bar.scored)
    point = chosen(points, goal)
    return _Choice(best, point.full, point.psnr, points[0].psnr, len(points))


def _by_schedule(run: _Run, goal: Goal) -> _Choice:
    found, start = run.reach(goal)
    best = run.trials.calibrated(found.best)
    hurried = run.asked < min(FEW, run.budget.trials) and not run.budget.left()
    return _Choice(best, len(best.full_steps), found.score, start, run.asked, found.trials, hurried=hurried)


class _Run:
    """One calibration: searches at one or several numbers of full steps."""

    def __init__(self, trials: Trials, budget: SearchBudget, bar: BestSoFar, theory: bool):
        self.trials, self.budget, self.bar, self.theory = trials, budget, bar, theory
        self.asked = 0

    def reach(self, goal: Goal) -> tuple[Found, float]:
        """The best that was found for the goal, and the score of its uniform start."""
        if not goal.psnr:
            return self._at(full_steps_for(goal, self.trials), self.budget.trials)
        return self._reach_psnr(goal.psnr)

    def _reach_psnr(self, psnr: float) -> tuple[Found, float]:
        """From a first guess upwards until the PSNR is reached, or downwards for as long as it is."""
        count, enough, each = guess(psnr, self.trials), None, max(4, self.budget.trials // 4)
        tried = self._at(count, each)
        best_db, down = tried[0].score, tried[0].score >= psnr
        while True:
            if tried[0].score >= psnr:
                enough = tried
            if (tried[0].score >= psnr) != down or not self.budget.left() or self.asked >= self.budget.trials:
                break
            count += -1 if down else 1
            if not 2 <= count < self.trials.steps:
                break
            tried = self._at(count, each)
            best_db = max(best_db, tried[0].score)
        if enough is None:
            raise StackError(
                f"no schedule reached {psnr:g} dB within the budget, the best had {best_db:.1f}: "
                "ask for less, or give it more seconds"
            )
        return enough

    def _at(self, count: int, most: int) -> tuple[Found, float]:
        trials, cache, steps = self.trials, self.trials.cache, self.trials.steps
        trials.restart()
        self.bar.says(f"{count} full steps")
        own = cache.policy
        start = Candidate.of(own, spread(count, steps, 1.0))
        scored = Scored(trials.score, most, self.budget.left, lambda c, v: self.bar.scored(v))
        varied = bool(own.forecast.effective_order) and not own.forecast.level
        propose = self._proposer(start, varied)
        correctable = varied and trials.correctable
        # A corrector wants other schedules than a forecast alone.
        template = replace(start, gains=WHOLE, order=1, corrected=True) if correctable else start
        families = openings(template, steps) if own.site.forecasts_x0 or correctable else ()

        def enough() -> bool:
            return varied and refinable(scored.found().best) and not self.budget.left(MOVING)

        found = search(scored, start, steps, propose, trials.coordinates, enough, varied, families, correctable)
        if varied and not scored.spent and refinable(found.best):
            self.bar.says("gains")
            scored.better(refined(found.best, trials.undisturbed, trials.target))
            found = scored.found()
        self.asked += len(found.trials)
        return found, scored.seen[start]

    def _proposer(self, start: Candidate, varied: bool) -> Proposer | None:
        template = start if not varied else Candidate(start.full_steps, WHOLE, 1, start.coordinate, start.energy)
        errors = self.trials.errors(template) if self.theory else None
        return Proposer(errors, template, self.trials.steps) if errors else None


def refuse(stack: StackLike, cache: Cache | None, prompts: Sequence[str], held_out: Sequence[str]) -> None:
    """Say what keeps a stack from being calibrated.

    Raises:
        StackError: something does.
    """
    if cache is None:
        raise StackError("nothing to calibrate: expected a stack with a cache, add .cache('svd')")
    if cache.policy.site.decides and not decides_by_threshold(cache):
        raise StackError(f"{cache.method} has nothing to calibrate: neither a schedule nor a threshold sets its pace")
    if stack.pipe is None:
        raise StackError("calibration judges finished pictures: expected Stack(pipeline), got a bare denoiser")
    if len(prompts) < 2 or not held_out:
        raise StackError(
            f"expected at least 2 prompts to search on and 1 held out, got {len(prompts)} and {len(held_out)}"
        )
    if set(prompts) & set(held_out):
        raise StackError("held-out prompts must not be among the prompts searched on")
