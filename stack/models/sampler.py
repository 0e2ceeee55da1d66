"""What a sampler makes of an error in the denoiser's output: the weights by which errors of steps add up."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from ..core.errors import StackError
from .schedule import SigmaSchedule


def host_copy(scheduler: Any) -> Any:
    """A copy whose tensors lie on the CPU, so that it can be stepped without a wait for the device."""
    probe = copy.copy(scheduler)
    for name, value in vars(scheduler).items():
        setattr(probe, name, value.detach().cpu() if isinstance(value, torch.Tensor) else copy.deepcopy(value))
    return probe


def linear_step(scheduler: Any, timestep: Any) -> tuple[float, float]:
    """(a, b) of one step x -> a x + b m of a deterministic one-step sampler, m being the denoiser's output.

    Found by stepping a copy of the scheduler with (1, 0) and (0, 1): the scheduler itself is left as it is.
    """
    found = []
    for x, m in ((1.0, 0.0), (0.0, 1.0)):
        probe = host_copy(scheduler)
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
    scheduler = host_copy(pipe.scheduler)
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


@dataclass(frozen=True)
class AffineStep:
    """One step of a deterministic one-step sampler, in numbers.

    Attributes:
        a, b: the step x' = a x + b m, m being the denoiser's output.
        c, d: the estimate of the clean sample that this output amounts to, x0 = c x + d m.
    """

    a: float
    b: float
    c: float
    d: float

    @property
    def keeps(self) -> float:
        """How much of a change of x is left after the step if x0 is held: x' = keeps x + adds x0."""
        return self.a - self.b * self.c / self.d

    @property
    def adds(self) -> float:
        """How much of x0 the step adds."""
        return self.b / self.d


def flow_steps(sigmas: Sequence[float]) -> list[AffineStep]:
    """Euler steps of a flow from each noise level to the next and to 0: m = noise - x0, x = (1 - s) x0 + s noise."""
    return [AffineStep(1.0, to - at, 1.0, -at) for at, to in zip(sigmas, (*sigmas[1:], 0.0), strict=True)]


def affine_steps(scheduler: Any) -> list[AffineStep]:
    """Every step of the schedule that the scheduler has made last: flow Euler, or DDIM with eta 0 (Song et al. 2021).

    Raises:
        StackError: another sampler, or one that clips or adds noise.
    """
    if plain_sampler(scheduler) is DDIMScheduler:
        return _ddim_steps(scheduler)
    return flow_steps([s for s in scheduler.sigmas.tolist() if s > 0])


def plain_sampler(scheduler: Any) -> type:
    """The sampler's class.

    Raises:
        StackError: it is not one whose steps are plain sums, x' = a x + b m.
    """
    config = scheduler.config
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler) and not config.get("stochastic_sampling"):
        return FlowMatchEulerDiscreteScheduler
    if isinstance(scheduler, DDIMScheduler) and not (config.clip_sample or config.thresholding):
        return DDIMScheduler
    name = type(scheduler).__name__
    raise StackError(f"{name} is no plain one-step sampler: expected flow Euler, or DDIM without clipping")


def why_not_plain(scheduler: Any) -> str:
    """What speaks against `plain_sampler`, or ''."""
    try:
        plain_sampler(scheduler)
    except StackError as error:
        return str(error)
    return ""


def _ddim_steps(scheduler: DDIMScheduler) -> list[AffineStep]:
    kept, stride = scheduler.alphas_cumprod.tolist(), scheduler.config.num_train_timesteps
    stride //= scheduler.num_inference_steps
    steps = []
    for t in scheduler.timesteps.tolist():
        share = kept[t - stride] if t >= stride else float(scheduler.final_alpha_cumprod)
        alpha, sigma = kept[t] ** 0.5, (1 - kept[t]) ** 0.5
        to, noise = share**0.5, (1 - share) ** 0.5
        if scheduler.config.prediction_type == "v_prediction":
            c, d, e, f = alpha, -sigma, sigma, alpha  # x0 = c x + d m, noise = e x + f m
        elif scheduler.config.prediction_type == "epsilon":
            c, d, e, f = 1 / alpha, -sigma / alpha, 0.0, 1.0
        else:
            c, d, e, f = 0.0, 1.0, 1 / sigma, -alpha / sigma
        steps.append(AffineStep(to * c + noise * e, to * d + noise * f, c, d))
    return steps


def planned_steps(pipe: Any | None, schedule: Callable[[], SigmaSchedule]) -> Callable[[], list[AffineStep]]:
    """The steps of the current request, worked out once for each schedule that the pipeline makes.

    A bare denoiser is taken for a flow on that schedule.

    Raises:
        StackError: at once, and again when it is asked for: the pipeline's sampler is none of `affine_steps`.
    """
    known: dict[str, Any] = {"made": None, "steps": []}

    def steps() -> list[AffineStep]:
        made = schedule()
        if made is not known["made"]:
            whole = flow_steps(made.sigmas) if pipe is None else affine_steps(pipe.scheduler)[made.begin :]
            known["steps"], known["made"] = whole, made
        return known["steps"]

    if pipe is not None:
        plain_sampler(pipe.scheduler)
    return steps
