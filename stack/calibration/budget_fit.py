"""Fits the estimate of an error budget to finished samples: so that what is allowed is used, and kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev

import torch

from ..caching.cache import Cache
from ..caching.gate_policies import BudgetPolicy
from ..compat.calibrated_for import conditions
from ..core.errors import StackError
from ..core.progress import ProgressLine
from ..runtime.pipeline_calls import PipelineCalls
from ..runtime.stack_like import StackLike
from .quant.recording import taken_off

ROUNDS = 7
MARGIN = 1.2  # the worst of a handful of prompts is not the worst of all
KEPT = 0.95  # share of prompts to come that shall keep to what is allowed
ENOUGH = 0.85  # of what is allowed, margin included: good enough to stop
BEYOND = 1.1  # a step towards smaller errors aims past the edge, or it would creep up to it
FARTHEST = 8.0  # one round does not change the scale by more
FAR = 3.0  # a larger scale is no matter of the estimate: early errors have turned layouts
LEAD = 0.3  # share of the steps that run in full then before any is cached


@dataclass(frozen=True)
class Round:
    """One scale tried.

    Attributes:
        worst: the error that most prompts to come keep below, over what is allowed; 1 is exactly on the edge.
    """

    scale: float
    worst: float


def fitted_budget(
    stack: StackLike, cache: Cache, prompts: Sequence[str], seed: int, calls: PipelineCalls, bar: ProgressLine
) -> Cache:
    """The cache with the scale at which nearly all prompts to come keep to what is allowed.

    Errors are |difference| / |final latents| against the same stack uncached. How much is cached depends on the scale,
    so it is searched on finished samples. Where it has to be large, it is searched again with the first steps always
    full, which is kept if its scale is smaller. Where the whole stack has been given an error, what the passes below
    the cache make of it is measured first and taken off: errors of stages add up at most (the triangle inequality).

    Raises:
        StackError: no prompt keeps to the budget, none has a step cached, or the passes below use all of it.
    """
    gate = cache.policy.gate
    assert isinstance(gate, BudgetPolicy)
    plain = cache.uncalibrated(gate="", interval=1)
    finals = partial(_finals, stack, prompts=prompts, seed=seed, calls=calls, bar=bar)
    exact = finals(plain, phase="uncached prompt")
    below, allowed = 0.0, gate.threshold
    if stack.max_error:
        below = MARGIN * max(map(_off, exact, _originals(stack, prompts, seed, calls, bar)))
        allowed = stack.max_error - below
        if allowed <= 0:
            what = f"the passes below the cache are off by {below:.2g} (margin included)"
            raise StackError(f"{what}, {stack.max_error:g} was allowed: allow more, or round less")
    cache, measured = cache.changed(threshold=allowed), dict[tuple[float, float], float]()

    def worst_at(lead: float, scale: float) -> float:
        made = finals(cache.changed(error_scale=scale, lead=lead), phase=f"scale {scale:.3g}, prompt")
        errors = list(map(_off, made, exact))
        measured[lead, scale] = max(errors)
        return error_to_come(errors) / allowed

    best, lead = on_the_edge(partial(worst_at, 0.0)), 0.0
    if best.scale > FAR or not 0 < best.worst <= 1:
        other = on_the_edge(partial(worst_at, LEAD))
        if 0 < other.worst <= 1 and (other.scale < best.scale or not 0 < best.worst <= 1):
            best, lead = other, LEAD
    if best.worst > 1:
        raise StackError(f"no scale keeps the error within {allowed:g} on these prompts: allow more")
    if best.worst == 0:
        raise StackError(f"no step was cached within {allowed:g}: allow more, or use more steps")
    under = conditions(stack.plan.facts_after)
    figures = {"error_scale": best.scale, "lead": lead, "below_error": below}
    figures["measured_error"] = measured[lead, best.scale]
    return cache.changed(**figures, calibrated_for=under)


def error_to_come(errors: Sequence[float]) -> float:
    """The error that a share `KEPT` of further prompts keeps below, at least `MARGIN` times the largest seen. Pure.

    Logarithms of errors are taken for normal, with mean m and spread s of n samples: the limit for one more is
    m + t s sqrt(1 + 1/n), t being Student's quantile with n - 1 degrees of freedom. 0 where an error is 0.
    """
    from scipy.special import stdtrit

    seen = MARGIN * max(errors)
    if min(errors) <= 0 or len(errors) < 3:  # two say nothing of their spread
        return seen
    logarithms = [math.log(error) for error in errors]
    spread = stdev(logarithms) * math.sqrt(1 + 1 / len(errors))
    return max(seen, math.exp(mean(logarithms) + float(stdtrit(len(errors) - 1, KEPT)) * spread))


def on_the_edge(worst_at: Callable[[float], float], rounds: int = ROUNDS) -> Round:
    """The scale whose worst error comes closest to 1 from below; where none does, the one with the smallest. Pure.

    Errors fall as the scale grows, about as a power of it and in jumps: bisection between the nearest rounds on either
    side in logarithms, and a proportional step while there is only one side.
    """
    tried: list[Round] = []
    scale = 1.0
    for _ in range(rounds):
        tried.append(Round(scale, worst_at(scale)))
        below = [r for r in tried if r.worst <= 1]
        above = [r for r in tried if r.worst > 1]
        if below and max(r.worst for r in below) >= ENOUGH:
            break
        if below and above:
            scale = math.sqrt(min(r.scale for r in below) * max(r.scale for r in above))
        else:
            over = BEYOND if tried[-1].worst > 1 else 1.0
            scale *= min(FARTHEST, max(1 / FARTHEST, over * tried[-1].worst))
    kept = [r for r in tried if r.worst <= 1]
    return max(kept, key=lambda r: (r.worst, -r.scale)) if kept else min(tried, key=lambda r: r.worst)


def _finals(
    stack: StackLike,
    cache: Cache,
    prompts: Sequence[str],
    seed: int,
    calls: PipelineCalls,
    bar: ProgressLine,
    phase: str,
) -> list[torch.Tensor]:
    """Final latents of every prompt."""
    stack.replace(cache)
    return list(calls.per_prompt(stack, prompts, seed, stack.plan.facts_after.asked, bar, phase, "latent"))


def _originals(
    stack: StackLike, prompts: Sequence[str], seed: int, calls: PipelineCalls, bar: ProgressLine
) -> list[torch.Tensor]:
    """Final latents of every prompt without the passes that only compute differently: adapters stay."""
    weights = [p for p in stack.passes if p.stage in ("distill", "adapter")]
    steps = stack.plan.facts_after.asked
    with taken_off(stack), stack.beside(weights) as other:
        return list(calls.per_prompt(other, prompts, seed, steps, bar, "original prompt", "latent"))


def _off(run: torch.Tensor, truth: torch.Tensor) -> float:
    return float((run.float() - truth.float()).norm() / truth.float().norm())
