"""The honest rival of a cache: the same schedule, walked by a second-order solver in fewer steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

_SHARED = (
    "num_train_timesteps", "use_dynamic_shifting", "base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift",
    "shift_terminal", "time_shift_type",
)  # fmt: skip


class FlowMultistep(UniPCMultistepScheduler):
    """UniPC of order 2 (Zhao et al. 2023, arXiv:2302.04867) on exactly the noise levels of a flow Euler scheduler.

    diffusers' own flow sigmas end elsewhere (1/1000 instead of 1/N before the last step) and round the time the
    denoiser is told to whole thousandths. Here both are the Euler scheduler's, so that the solver is all that differs.
    """

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | np.ndarray | None = None,
        mu: float | None = None,
    ) -> None:
        """Unshifted `sigmas`, by default the pipelines' own 1, 1 - 1/N, ..., 1/N; `mu` is their log of the shift."""
        if sigmas is None:
            assert num_inference_steps is not None, "either the number of steps or the noise levels"
            sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        # diffusers annotates these arguments more narrowly than it, and every pipeline, uses them.
        parent: Any = super()
        parent.set_timesteps(sigmas=np.array(sigmas, dtype=np.float64), mu=mu, device=device)
        exact = self.sigmas[:-1].clone()
        # The parent moves a first sigma of 1 by 1e-6, to keep its logarithm finite.
        exact[0] = exact[0].round(decimals=5)
        self.timesteps = (exact * self.config["num_train_timesteps"]).to(device)


def multistep_of(scheduler: Any) -> FlowMultistep | None:
    """A second-order solver on the noise levels of `scheduler`; None where that is no flow-matching Euler scheduler."""
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return None
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
