"""What MagCache and TeaCache measure on uncached runs before they can decide anything. Pure, from a `Trajectory`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...errors import StackError
from ...passes.cache import Cache
from .conditions import conditions
from .trajectory import Recorder, Trajectory

if TYPE_CHECKING:
    from ...builder import Stack

DEGREE = 4  # of TeaCache's polynomial
ROUNDS = 3  # of fitting an error estimate
MARGIN = 1.2


def fit_gate(stack: Stack, cache: Cache, prompts: Sequence[str], seed: int) -> Cache:
    """The cache with its gate's ratios or polynomial, measured prompt by prompt on uncached runs."""
    if cache.policy.gate == "budget":
        scale = error_scale(stack, cache, prompts, seed)
        return cache.changed(error_scale=scale, calibrated_for=conditions(stack.plan.facts_after))
    trajectory = Trajectory()
    stack.replace(Recorder(trajectory))
    for i, prompt in enumerate(prompts):
        stack(prompt, generator=torch.Generator().manual_seed(seed + i), output_type="pt")
    under = conditions(stack.plan.facts_after)
    if cache.policy.gate == "magnitude":
        return cache.changed(ratios=residual_ratios(trajectory, len(prompts)), calibrated_for=under)
    return cache.changed(coefficients=output_polynomial(trajectory, len(prompts)), calibrated_for=under)


def error_scale(stack: Stack, cache: Cache, prompts: Sequence[str], seed: int) -> float:
    """What the estimate of an error budget has to be multiplied with, so that finished samples keep to the budget.

    Each round runs the prompts with the scale found so far and takes the largest ratio of measured error to bare
    estimate: the ratio depends on how much is cached, so it is looked for where the budget will be spent. Errors are
    |difference| / |final latents| against the same stack uncached. With few prompts the largest ratio is about their
    80th percentile, so it is raised by `MARGIN`.

    Raises:
        StackError: no step was cached within the budget.
    """
    plain = cache.changed(gate="", threshold=0.0, interval=1, full_steps=(), segments=(), calibrated_for=())
    exact = [run for run, _ in _finals(stack, plain, prompts, seed)]
    scale, ratios = 1.0, list[float]()
    for _ in range(ROUNDS):
        made = _finals(stack, cache.changed(error_scale=scale), prompts, seed)
        pairs = zip(made, exact, strict=True)
        ratios = [scale * _off(run, truth) / estimate for (run, estimate), truth in pairs if estimate]
        if not ratios:
            raise StackError(f"no step was cached within {cache.policy.threshold:g}: allow more, or use more steps")
        scale = MARGIN * max(ratios)
    return scale


def _finals(stack: Stack, cache: Cache, prompts: Sequence[str], seed: int) -> list[tuple[torch.Tensor, float]]:
    """Final latents and estimated error of every prompt."""
    stack.replace(cache)
    made = []
    for i, prompt in enumerate(prompts):
        generator = torch.Generator().manual_seed(seed + i)
        last = stack(prompt, generator=generator, output_type="latent", return_dict=False)[0]
        made.append((last, stack.report().passes["cache"].get("estimated_error", 0.0)))
    return made


def _off(run: torch.Tensor, truth: torch.Tensor) -> float:
    return float((run.float() - truth.float()).norm() / truth.float().norm())


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

    Least squares over all neighbouring steps of all requests.
    """
    modulated = torch.stack(trajectory.modulated).unflatten(0, (requests, -1))
    residual = torch.stack(trajectory.features) - torch.stack(trajectory.inputs)
    x, y = _changes(modulated), _changes(residual.unflatten(0, (requests, -1)))
    return tuple(float(c) for c in np.polyfit(x, y, DEGREE))


def _changes(values: torch.Tensor) -> np.ndarray:
    """mean|v_t - v_(t-1)| / mean|v_(t-1)| of (R, S, B, n, D), step by step; (R (S - 1),)."""
    gone = (values[:, 1:] - values[:, :-1]).abs().flatten(2).mean(-1)
    return (gone / values[:, :-1].abs().flatten(2).mean(-1)).flatten().numpy()
