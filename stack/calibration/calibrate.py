"""Calibration: choose the full steps and the forecast of a cache by the final picture, on the stack as it really is."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from ..caching.cache import Cache
from ..caching.learned import KINDS
from ..compat.calibrated_for import conditions
from ..core.errors import StackError, choose
from ..models.denoiser import all_denoisers
from ..runtime.call_arguments import Call
from ..runtime.pipeline_calls import PipelineCalls
from ..runtime.stack_like import StackLike
from .calibration import Calibration
from .choosing import Search, SearchResult
from .goals import Goal
from .progress import BestSoFar
from .time_budget import SearchBudget, watched
from .trials import decides_by_threshold


def calibrate(
    stack: StackLike,
    prompts: Sequence[Any],
    held_out: Sequence[Any],
    goal: Goal,
    seed: int,
    budget: SearchBudget,
    progress: bool = True,
    call: Call | None = None,
    learn: str | None = None,
) -> Calibration:
    """Search a schedule, or a threshold, for the cache of a stack with a pipeline; leaves the stack with the best on.

    The prompts' uncached pictures are made once. For a cache with a schedule finished pictures decide where full steps
    go; see `search`. With what time is left each run of cached steps gets a gain of its own. For a cache with a gate,
    its threshold is bisected; see `thresholds.tuned`. The cache that was there stays if it does what is asked and is no
    worse on the held-out prompts.

    What does not fit into the budget is left out, and the result says so. Ctrl-C ends the search and keeps the best so
    far; before anything was found it leaves the stack as it was.

    Args:
        call: further arguments of every call, see `stack.runtime.pipeline_calls.PipelineCalls`.
        learn: corrections to learn, see `stack.calibration.measuring.calibrate`.

    Raises:
        StackError: no cache in the stack, no pipeline, fewer than two prompts, a goal that cannot be reached, or a
            budget that is too small to begin with. The stack is then as it was.
    """
    steps = stack.plan.facts_after.steps
    cache = next((p for p in stack.passes if isinstance(p, Cache)), None)
    refuse(stack, cache, prompts, held_out)
    kind = kind_of(learn)
    assert cache is not None
    goal = goal.checked(steps)
    if cache.policy.site.decides and not (goal.min_psnr or goal.max_seconds):
        raise StackError(
            f"{cache.method} decides block by block, it has no full steps: expected min_psnr= or max_seconds="
        )
    calls = PipelineCalls(stack.pipe, call)
    calls.check([*prompts, *held_out], steps)
    applied = stack.applied
    try:
        with BestSoFar(budget, progress) as bar, watched(all_denoisers(stack.pipe).values(), budget):
            run = Search(stack, cache, calls, goal, budget, bar, kind)
            choice, held = run.all(prompts, held_out, seed)
            best = choice.cache
            if not choice.kept:
                best = best.changed(calibrated_for=conditions(stack.plan.facts_after))
    except BaseException:
        if not applied:
            stack.undo()
        stack.replace(cache)
        raise
    stack.replace(best)
    found = _outcome(run, budget, best, choice, held, steps, len(prompts) + len(held_out))
    if budget.interrupted:
        warnings.warn(f"interrupted, the best so far is kept: {found}", stacklevel=4)
    return found


def _outcome(
    run: Search, budget: SearchBudget, best: Cache, choice: SearchResult, held: float, steps: int, prompts: int
) -> Calibration:
    """What a search came to, for its user."""
    shared = run.trials.shared
    return Calibration(
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
        kept=choice.kept,
        learned=choice.learned,
        before_psnr_db=run.own.psnr,
        left_out=prompts - run.used,
        interrupted=budget.interrupted,
        curve=run.trials.curve.points(choice.full, choice.psnr),
    )


def kind_of(learn: str | None) -> str:
    """The kind of corrections to learn; "" for none.

    Raises:
        StackError: no such kind.
    """
    if learn is None:
        return KINDS[-1]
    if learn not in (*KINDS, "off"):
        raise choose("learn", learn, [*KINDS, "off"])
    return "" if learn == "off" else learn


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
