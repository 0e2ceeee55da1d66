"""What a sampler makes of an error in the denoiser's output: the weights by which errors of steps add up."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import StackError


def linear_step(scheduler: Any, timestep: Any) -> tuple[float, float]:
    """(a, b) of one step x -> a x + b m of a deterministic one-step sampler, m being the denoiser's output.

    Found by stepping a copy of the scheduler with (1, 0) and (0, 1): the scheduler itself is left as it is.
    """
    found = []
    for x, m in ((1.0, 0.0), (0.0, 1.0)):
        probe = copy.deepcopy(scheduler)
        sample, output = (torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (x, m))
        found.append(float(probe.step(output, timestep, sample, return_dict=False)[0].reshape(-1)[0]))
    return found[0], found[1]


def error_weights(steps: Sequence[tuple[float, float]], growth: Sequence[float]) -> list[float]:
    """How much of an error in the output of each step is left in the final sample: w_s = b_s * n_S / n_(s+1).

    A difference between two runs grows and shrinks on its way, by the sampler and by what the denoiser makes of it.
    Its size along one disturbed run, n_1 ... n_S, is taken for all of them.

    Args:
        steps: (a, b) of every step, in order.
        growth: n_1 ... n_S, the size of a difference after each step; only ratios matter.
    """
    return [b * growth[-1] / n for (_, b), n in zip(steps, growth, strict=True)]


def sampler_steps(pipe: Any) -> list[tuple[float, float]]:
    """(a, b) of every step of the pipeline's scheduler as its last call left it.

    Raises:
        StackError: its steps depend on more than the newest output, so they have no weights of their own.
    """
    scheduler = copy.deepcopy(pipe.scheduler)
    if scheduler.config.get("solver_order", 1) > 1:
        name = type(scheduler).__name__
        raise StackError(f"{name} keeps a history: expected a one-step sampler such as flow Euler or DDIM")
    steps = []
    for index, timestep in enumerate(scheduler.timesteps):
        for name in ("_step_index", "_begin_index"):
            if name in vars(scheduler):
                setattr(scheduler, name, index)
        steps.append(linear_step(scheduler, timestep))
    return steps
