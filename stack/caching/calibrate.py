"""Calibration: choose the full steps and the forecast of a cache by the final picture, on the stack as it really is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import StackError
from ..passes.cache import Cache
from .conditions import conditions
from .goals import Goal, full_steps_for, guess
from .progress import BestSoFar
from .propose import Proposer
from .search import WHOLE, Candidate, Found, Scored, search, spread
from .segment_gains import refined
from .trials import Trials, held_out_psnr

if TYPE_CHECKING:
    from ..builder import Stack

SCHEDULED = ("output", "residual", "blocks", "modules", "attention")  # sites that follow a schedule of full steps
DISAGREE_DB = 3.0  # more than this between calibration and held-out prompts means the search has fitted its prompts
MOVING = 0.6  # share of the time for the search after which no new round of moves begins: gains per segment follow


@dataclass(frozen=True)
class Calibration:
    """What a calibration found. PSNR in dB, on pictures in [0, 1], against the same stack without its cache.

    Attributes:
        candidate: the full steps and the forecast.
        psnr_db, held_out_psnr_db: of that, on the prompts searched on and on others.
        uniform_psnr_db: of evenly spread full steps with the cache's own forecast, on the prompts searched on.
        remembered: share of the trials' full steps that an earlier trial had computed.
    """

    candidate: Candidate
    steps: int
    psnr_db: float
    held_out_psnr_db: float
    uniform_psnr_db: float
    trials: int
    seconds: float
    remembered: float = 0.0

    @property
    def full_steps(self) -> tuple[int, ...]:
        """The steps that run in full."""
        return self.candidate.full_steps

    @property
    def generalises(self) -> bool:
        """Whether held-out prompts agree with the ones searched on."""
        return self.psnr_db - self.held_out_psnr_db < DISAGREE_DB

    def __str__(self) -> str:
        doubt = "" if self.generalises else "; WARNING: held-out prompts disagree, give it more prompts"
        c = self.candidate
        each = f", by segment {' '.join(f'{g:g}' for g in c.segments)}" if c.segments else ""
        return (
            f"{len(c.full_steps)} of {self.steps} steps full: {' '.join(map(str, c.full_steps))}; order {c.order}, "
            f"gains {c.gains[0]:g} / {c.gains[1]:g}{each}; {self.psnr_db:.1f} dB on its prompts, "
            f"{self.held_out_psnr_db:.1f} dB held out, {self.uniform_psnr_db:.1f} dB for the uniform start; "
            f"{self.trials} trials in {self.seconds:.0f} s, {self.remembered:.0%} of their full steps remembered{doubt}"
        )


class Budget:
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
    stack: Stack,
    prompts: Sequence[str],
    held_out: Sequence[str],
    goal: Goal,
    seed: int = 0,
    budget: Budget | None = None,
    progress: bool = True,
    theory: bool = True,
) -> tuple[Cache, Calibration]:
    """Search a schedule for the cache of a stack with a pipeline; leaves the stack with the best one on.

    The prompts' uncached runs are recorded once. From them schedules are proposed (`Proposer`), and finished pictures
    decide; see `search`. With what time is left each run of cached steps gets a gain of its own.

    Args:
        theory: whether to try proposed schedules first, rather than spreads.

    Raises:
        StackError: no cache in the stack, no pipeline, fewer than two prompts, or a goal that cannot be reached. The
            stack's cache is then as it was.
    """
    budget = budget or Budget(60, 60.0)
    steps = stack.plan.facts_after.steps
    cache = next((p for p in stack.passes if isinstance(p, Cache)), None)
    refuse(stack, cache, prompts, held_out)
    assert cache is not None
    goal = goal.or_as_before(len(cache.schedule_for(steps).full_steps(steps)), steps)
    try:
        with BestSoFar(budget.trials, progress) as bar:
            trials = Trials(stack, cache, prompts, steps, seed)
            per_picture = trials.recording_s / len(prompts)
            budget.reserved = 1.2 * len(held_out) * per_picture  # uncached once, and once with the cache
            run = _Run(trials, budget, bar, theory)
            found, uniform = run.reach(goal)
            bar.says("checking")
            best = cache.calibrated(found.best, steps).changed(calibrated_for=conditions(stack.plan.facts_after))
            held = held_out_psnr(trials, best, held_out)
    finally:
        stack.replace(cache)
    stack.replace(best)
    shared = trials.shared
    return best, Calibration(
        candidate=found.best,
        steps=steps,
        psnr_db=found.score,
        held_out_psnr_db=held,
        uniform_psnr_db=uniform,
        trials=len(found.trials),
        seconds=budget.spent,
        remembered=shared.remembered / max(1, shared.remembered + shared.computed),
    )


class _Run:
    """One calibration: searches at one or several numbers of full steps."""

    def __init__(self, trials: Trials, budget: Budget, bar: BestSoFar, theory: bool):
        self.trials, self.budget, self.bar, self.theory = trials, budget, bar, theory
        self._asked = 0

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
            if (tried[0].score >= psnr) != down or not self.budget.left() or self._asked >= self.budget.trials:
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
        start = Candidate(spread(count, steps, 1.0), own.gains, own.order, own.coordinate, own.energy)
        scored = Scored(trials.score, most, self.budget.left, lambda c, v: self.bar.scored(v))
        varied = bool(own.forecast.effective_order) and not own.level
        propose = self._proposer(start, varied)
        found = search(scored, start, steps, propose, trials.coordinates, lambda: not self.budget.left(MOVING), varied)
        if varied and not scored.spent and found.best.order == 1:
            self.bar.says("gains")
            scored.better(refined(found.best, trials.undisturbed, trials.target))
            found = scored.found()
        self._asked += len(found.trials)
        return found, scored.seen[start]

    def _proposer(self, start: Candidate, varied: bool) -> Proposer | None:
        template = start if not varied else Candidate(start.full_steps, WHOLE, 1, start.coordinate, start.energy)
        errors = self.trials.errors(template) if self.theory else None
        return Proposer(errors, template, self.trials.steps) if errors else None


def refuse(stack: Stack, cache: Cache | None, prompts: Sequence[str], held_out: Sequence[str]) -> None:
    """Say what keeps a stack from being calibrated.

    Raises:
        StackError: something does.
    """
    if cache is None:
        raise StackError("nothing to calibrate: expected a stack with a cache, add .cache('svd')")
    if cache.policy.gate or cache.policy.site not in SCHEDULED:
        raise StackError(f"{cache.method} has no schedule to search: its steps are decided by a gate or a cycle")
    if stack.pipe is None:
        raise StackError("calibration judges finished pictures: expected Stack(pipeline), got a bare denoiser")
    if len(prompts) < 2 or not held_out:
        raise StackError(
            f"expected at least 2 prompts to search on and 1 held out, got {len(prompts)} and {len(held_out)}"
        )
    if set(prompts) & set(held_out):
        raise StackError("held-out prompts must not be among the prompts searched on")
