"""Every scheduler that diffusers exports, with the settings that suit a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
from diffusers import schedulers

# Settings that change which noise levels or timesteps a call is made at, or how many calls a step takes.
FLOW_VARIANTS: dict[str, list[dict[str, Any]]] = {
    "FlowMatchEulerDiscreteScheduler": [
        {"use_dynamic_shifting": True}, {"stochastic_sampling": True}, {"shift_terminal": 0.1},
        {"use_karras_sigmas": True}, {"invert_sigmas": True},
    ],
    # FluxPipeline hands them a shift, which they take only with this.
    "DEISMultistepScheduler": [{"use_dynamic_shifting": True}],
    "DPMSolverMultistepScheduler": [
        {"use_dynamic_shifting": True}, {"use_dynamic_shifting": True, "algorithm_type": "sde-dpmsolver++"},
    ],
    "DPMSolverSinglestepScheduler": [{"use_dynamic_shifting": True}],
    "UniPCMultistepScheduler": [{"solver_order": 3}, {"use_dynamic_shifting": True}],
}  # fmt: skip
OWN_VARIANTS: dict[str, list[dict[str, Any]]] = {
    "DDIMScheduler": [
        {"timestep_spacing": "trailing"}, {"timestep_spacing": "linspace"},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ],
    "DPMSolverMultistepScheduler": [
        {"algorithm_type": "sde-dpmsolver++"}, {"use_karras_sigmas": True}, {"use_flow_sigmas": True},
        {"use_lu_lambdas": True}, {"final_sigmas_type": "sigma_min"}, {"timestep_spacing": "leading"},
    ],
    "EulerDiscreteScheduler": [
        {"timestep_spacing": "trailing"}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True},
        {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True},
    ],
    "HeunDiscreteScheduler": [{"use_karras_sigmas": True}],
    "KDPM2DiscreteScheduler": [{"use_karras_sigmas": True}],
    "LMSDiscreteScheduler": [{"use_karras_sigmas": True}],
    "PNDMScheduler": [{"skip_prk_steps": True}],
    "UniPCMultistepScheduler": [{"use_karras_sigmas": True}, {"use_flow_sigmas": True}],
    "FlowMatchEulerDiscreteScheduler": [{"stochastic_sampling": True}],
}  # fmt: skip


def exported() -> list[str]:
    """Names of the scheduler classes of diffusers, those that need a missing library included."""
    # `SchedulerMixin` is their base, `KarrasDiffusionSchedulers` a list, what ends in "Output" what they return.
    none = {"SchedulerMixin", "KarrasDiffusionSchedulers"}
    return sorted(n for n in dir(schedulers) if n.endswith("Scheduler") and n not in none)


def choices(flow: bool) -> dict[str, Callable[[], Any]]:
    """What makes each scheduler, by name and settings.

    Args:
        flow: for a model that predicts a velocity: flow settings where the class has them; else its defaults.
    """
    made: dict[str, Callable[[], Any]] = {}
    variants = FLOW_VARIANTS if flow else OWN_VARIANTS
    for name in exported():
        kind = getattr(diffusers, name, None) or getattr(schedulers, name)
        taken = inspect.signature(kind.__init__).parameters
        base: dict[str, Any] = {}
        if flow and "use_flow_sigmas" in taken:
            base = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
            base = {key: value for key, value in base.items() if key in taken}
        elif flow and "shift" in taken:
            base = {"shift": 3.0}
        for more in [{}, *variants.get(name, [])]:
            if more.get("use_flow_sigmas"):
                more = {**more, "prediction_type": "flow_prediction"}
            words = ", ".join(f"{key}={value}" for key, value in more.items())
            made[f"{name}({words})" if words else name] = partial(kind, **base, **more)
    return made
