"""The honest rival of a cache: the same schedule, walked by a second-order solver in fewer steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from ..core.errors import StackError

_SHARED = (
    "num_train_timesteps", "use_dynamic_shifting", "base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift",
    "shift_terminal", "time_shift_type",
)  # fmt: skip
# Entries that make another schedule than that of `FlowMultistep`, or add noise.
_OTHERWISE = ("invert_sigmas", "stochastic_sampling", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_DIFFUSION = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "timestep_spacing", "steps_offset", "rescale_betas_zero_snr",
)  # fmt: skip


class FlowMultistep(UniPCMultistepScheduler):
    """UniPC of order 2 (Zhao et al. 2023, arXiv:2302.04867) on exactly the noise levels of a flow Euler scheduler.

    diffusers' own flow sigmas end elsewhere (1/1000 instead of 1/N before the last step) and round the
    denoiser's time to whole thousandths. Here both are the Euler scheduler's, so that the solver is all that differs.

    Attributes:
        times: unshifted times to walk, whatever the pipeline asks for; empty to do as asked.
    """

    times: tuple[float, ...] = ()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | np.ndarray | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        """As flow Euler's.

        Args:
            sigmas: unshifted, by default the pipelines' own 1, 1 - 1/N, ..., 1/N.
            mu: log of the shift.
            timesteps: what the denoiser is told, where that is not the shifted noise level (CogView4).
        """
        if self.times:
            sigmas = np.array(self.times)
        if sigmas is None:
            assert num_inference_steps is not None, "either the number of steps or the noise levels"
            sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        # diffusers annotates these arguments more narrowly than it, and every pipeline, uses them.
        parent: Any = super()
        parent.set_timesteps(sigmas=np.array(sigmas, dtype=np.float64), mu=mu, device=device)
        exact = self.sigmas[:-1].clone()
        # The parent moves a first sigma of 1 by 1e-6, to keep its logarithm finite.
        exact[0] = exact[0].round(decimals=5)
        told = exact * self.config["num_train_timesteps"]
        if timesteps is not None and not self.times:
            told = torch.tensor(np.array(timesteps), dtype=told.dtype)
        self.timesteps = told.to(device)


class DiffusionMultistep(DPMSolverMultistepScheduler):
    """DPM-Solver++ of order 2 (Lu et al. 2022, arXiv:2211.01095) on the discrete times of a DDIM scheduler.

    Attributes:
        times: shares (t + 1) / T of the training's times to walk; empty for as many as asked, spaced like DDIM's.
    """

    times: tuple[float, ...] = ()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        mu: float | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """As DDIM's; `timesteps` are whole numbers below T, falling."""
        if self.times:
            timesteps = discrete_times(self.times, self.config["num_train_timesteps"])
        parent: Any = super()
        if timesteps is not None:
            parent.set_timesteps(device=device, timesteps=timesteps)
        else:
            parent.set_timesteps(num_inference_steps, device=device)


def discrete_times(times: Sequence[float], trained: int) -> list[int]:
    """Whole time steps nearest to shares of the training's, each below the one before it.

    Raises:
        StackError: more times than there are whole steps below the first.
    """
    found: list[int] = []
    for left, u in zip(range(len(times) - 1, -1, -1), times, strict=True):
        highest = found[-1] - 1 if found else trained - 1
        if highest < left:
            raise StackError(f"{len(times)} times do not fit below step {trained}: expected fewer, or earlier ones")
        found.append(max(left, min(highest, round(u * trained) - 1)))
    return found


def multistep_of(scheduler: Any, times: Sequence[float] = ()) -> FlowMultistep | DiffusionMultistep | None:
    """A second-order solver on the noise levels of `scheduler`; None where that is neither flow Euler nor DDIM.

    None also for a flow Euler whose configuration makes its levels in another way: inverted (Mochi), spaced as Karras
    et al. do, or with noise added.

    Args:
        times: unshifted times to walk, falling from 1; empty for as many as the pipeline asks for, where it asks them.
    """
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        if any(scheduler.config.get(name) for name in _OTHERWISE):
            return None
        solver: Any = _flow(scheduler)
    elif isinstance(scheduler, DDIMScheduler):
        config = {name: scheduler.config[name] for name in _DIFFUSION}
        solver = DiffusionMultistep(solver_order=2, algorithm_type="dpmsolver++", **config)
    else:
        return None
    solver.times = tuple(times)
    return solver


def _flow(scheduler: Any) -> FlowMultistep:
    config = {name: scheduler.config[name] for name in _SHARED}
    solver = FlowMultistep(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=scheduler.config.shift,
        solver_order=2,
        num_train_timesteps=config.pop("num_train_timesteps"),
        use_dynamic_shifting=config.pop("use_dynamic_shifting"),
        shift_terminal=config.pop("shift_terminal"),
        time_shift_type=config.pop("time_shift_type"),
    )
    # Pipelines compute mu from these entries of the config, which UniPC does not know as arguments.
    solver.register_to_config(**config)
    return solver
