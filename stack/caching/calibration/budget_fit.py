"""Fits the estimate of an error budget to finished samples: so that what is allowed is used, and kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...errors import StackError
from ...passes.cache import Cache

if TYPE_CHECKING:
    from ...builder import Stack

ROUNDS = 7
MARGIN = 1.2  # the worst of a handful of prompts is not the worst of all
ENOUGH = 0.85  # of what is allowed, margin included: good enough to stop
BEYOND = 1.1  # a step towards smaller errors aims past the edge, or it would creep up to it
FARTHEST = 8.0  # one round does not change the scale by more


@dataclass(frozen=True)
class Round:
    """One scale tried.

    Attributes:
        worst: largest measured error of a prompt, over what is allowed, margin included; 1 is exactly on the edge.
    """

    scale: float
    worst: float


def fitted_scale(stack: Stack, cache: Cache, prompts: Sequence[str], seed: int) -> float:
    """The scale at which the worst prompt uses what is allowed, less a margin.

    Errors are |difference| / |final latents| against the same stack uncached. An estimate is a sum of absolute values
    and knows nothing of how the sampler damps errors or carries them on, and how much is cached depends on it: so the
    scale is looked for on finished samples, where the budget will be spent.

    Raises:
        StackError: no prompt keeps to the budget, or none has a step cached.
    """
    plain = cache.uncalibrated(gate="", threshold=0.0, interval=1)
    exact = _finals(stack, plain, prompts, seed)
    allowed = cache.policy.threshold

    def worst_at(scale: float) -> float:
        made = _finals(stack, cache.changed(error_scale=scale), prompts, seed)
        return MARGIN * max(_off(run, truth) for run, truth in zip(made, exact, strict=True)) / allowed

    best = on_the_edge(worst_at)
    if best.worst > 1:
        raise StackError(f"no scale keeps the error within {allowed:g} on these prompts: allow more")
    if best.worst == 0:
        raise StackError(f"no step was cached within {allowed:g}: allow more, or use more steps")
    return best.scale


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


def _finals(stack: Stack, cache: Cache, prompts: Sequence[str], seed: int) -> list[torch.Tensor]:
    """Final latents of every prompt."""
    stack.replace(cache)
    made = []
    for i, prompt in enumerate(prompts):
        generator = torch.Generator().manual_seed(seed + i)
        made.append(stack(prompt, generator=generator, output_type="latent", return_dict=False)[0])
    return made


def _off(run: torch.Tensor, truth: torch.Tensor) -> float:
    return float((run.float() - truth.float()).norm() / truth.float().norm())
