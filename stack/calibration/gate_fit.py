"""What MagCache and TeaCache measure on uncached runs before they can decide anything. Pure, from a `Trajectory`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from ..caching.cache import Cache
from ..caching.gate_policies import BudgetPolicy, MagnitudePolicy
from ..compat.calibrated_for import conditions
from ..core.progress import ProgressLine
from ..runtime.pipeline_calls import PipelineCalls
from ..runtime.stack_like import StackLike
from .budget_fit import fitted_budget
from .trajectory import Trajectory, recorder

DEGREE = 4  # of TeaCache's polynomial


def fit_gate(
    stack: StackLike, cache: Cache, prompts: Sequence[str], seed: int, calls: PipelineCalls, bar: ProgressLine
) -> Cache:
    """The cache with its gate's ratios or polynomial, measured prompt by prompt on uncached runs."""
    if isinstance(cache.policy.gate, BudgetPolicy):
        return fitted_budget(stack, cache, prompts, seed, calls, bar)
    trajectory = Trajectory()
    stack.replace(recorder(trajectory))
    for _ in calls.per_prompt(stack, prompts, seed, stack.plan.facts_after.asked, bar, "prompt"):
        pass
    under = conditions(stack.plan.facts_after)
    if isinstance(cache.policy.gate, MagnitudePolicy):
        return cache.changed(ratios=residual_ratios(trajectory, len(prompts)), calibrated_for=under)
    return cache.changed(coefficients=output_polynomial(trajectory, len(prompts)), calibrated_for=under)


def residual_ratios(trajectory: Trajectory, requests: int) -> tuple[float, ...]:
    """MagCache's mean |r_t| / |r_(t-1)| over tokens, r being what the blocks add; 1 for the first step.

    Args:
        requests: how many runs of equal length lie one after the other in the trajectory; averaged over.
    """
    norms = torch.stack(
        [(f - x).norm(dim=-1).flatten() for f, x in zip(trajectory.features, trajectory.inputs, strict=True)]
    )
    norms = norms.unflatten(0, (requests, -1))  # (R, S, B n)
    ratios = (norms[:, 1:] / norms[:, :-1].clamp_min(1e-12)).mean((0, 2))
    return (1.0, *(float(ratio) for ratio in ratios))


def output_polynomial(trajectory: Trajectory, requests: int) -> tuple[float, ...]:
    """TeaCache's polynomial, highest power first: relative change of the modulated input to that of the residual.

    Least squares over all neighbouring steps of all requests that one denoiser has.
    """
    modulated = torch.stack(trajectory.modulated).unflatten(0, (requests, -1))
    residual = torch.stack(trajectory.features) - torch.stack(trajectory.inputs)
    parts = [context.part for context in trajectory.contexts[: modulated.shape[1]]]
    same = [before == part for before, part in pairwise(parts)]
    x, y = (_changes(values)[:, same].flatten() for values in (modulated, residual.unflatten(0, (requests, -1))))
    return tuple(float(c) for c in np.polyfit(x, y, DEGREE))


def _changes(values: torch.Tensor) -> np.ndarray:
    """mean|v_t - v_(t-1)| / mean|v_(t-1)| of (R, S, B, n, D), step by step; (R, S - 1)."""
    gone = (values[:, 1:] - values[:, :-1]).abs().flatten(2).mean(-1)
    return (gone / values[:, :-1].abs().flatten(2).mean(-1)).numpy()
