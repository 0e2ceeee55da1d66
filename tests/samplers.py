"""Every deterministic sampler of diffusers, in the settings that change what a step does, and those that are none."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import torch

from stack.measure.multistep import DiffusionMultistep, FlowMultistep

FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
V: dict[str, Any] = {"prediction_type": "v_prediction"}
KARRAS: dict[str, Any] = {"use_karras_sigmas": True}
OPEN: dict[str, Any] = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
COGVIDEO: dict[str, Any] = {
    **V, "clip_sample": False, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "snr_shift_scale": 1.0,
}  # fmt: skip
SDE: dict[str, Any] = {"algorithm_type": "sde-dpmsolver++"}

# Class of diffusers, and its settings.
ROWS: list[tuple[str, dict[str, Any]]] = [
    ("FlowMatchEulerDiscrete", {"shift": 3.0}),
    ("FlowMatchEulerDiscrete", {"invert_sigmas": True}),
    ("FlowMatchEulerDiscrete", {"shift_terminal": 0.1, "shift": 3.0}),
    ("FlowMatchEulerDiscrete", KARRAS),
    ("FlowMatchEulerDiscrete", {"use_exponential_sigmas": True}),
    ("FlowMatchEulerDiscrete", {"use_beta_sigmas": True}),
    ("FlowMatchHeunDiscrete", {"shift": 3.0}),
    ("FlowMapEulerDiscrete", {}),
    ("UniPCMultistep", FLOW),
    ("UniPCMultistep", {}),
    ("UniPCMultistep", {**V, **KARRAS}),
    ("UniPCMultistep", {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    ("UniPCMultistep", {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
    *(("DPMSolverMultistep", {"solver_order": order}) for order in (1, 2, 3)),
    *(("DPMSolverMultistep", {"solver_order": order, **OPEN}) for order in (2, 3)),
    ("DPMSolverMultistep", {**KARRAS, "solver_type": "heun"}),
    ("DPMSolverMultistep", {"use_exponential_sigmas": True}),
    ("DPMSolverMultistep", {"use_beta_sigmas": True}),
    ("DPMSolverMultistep", {"use_lu_lambdas": True, **V}),
    ("DPMSolverMultistep", {"euler_at_final": True, "prediction_type": "sample"}),
    ("DPMSolverMultistep", FLOW),
    *(("DPMSolverSinglestep", {"solver_order": order, "lower_order_final": True}) for order in (1, 2, 3)),
    ("DPMSolverSinglestep", {"solver_order": 2, **OPEN}),
    ("DEISMultistep", {}),
    ("DEISMultistep", {"solver_order": 3}),
    ("DEISMultistep", FLOW),
    ("LMSDiscrete", {}),
    ("LMSDiscrete", KARRAS),
    ("PNDM", {"skip_prk_steps": True}),
    ("PNDM", {"skip_prk_steps": True, **V}),
    ("PNDM", {}),
    ("IPNDM", {}),
    ("EulerDiscrete", {}),
    ("EulerDiscrete", {"use_exponential_sigmas": True}),
    ("EulerDiscrete", {**V, **KARRAS, "timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 120.0}),
    ("EDMEuler", {}),
    ("EDMEuler", V),
    ("EDMDPMSolverMultistep", {}),
    ("EDMDPMSolverMultistep", {"solver_order": 3}),
    ("HeunDiscrete", {}),
    ("HeunDiscrete", {**V, **KARRAS}),
    ("HeunDiscrete", {"prediction_type": "sample"}),
    ("KDPM2Discrete", {}),
    ("KDPM2Discrete", {**V, **KARRAS}),
    *(("DDIM", {"clip_sample": False, "prediction_type": kind}) for kind in ("epsilon", "v_prediction", "sample")),
    ("DDIM", {**V, "clip_sample": False, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ("DDIMParallel", {"clip_sample": False}),
    ("CogVideoXDDIM", COGVIDEO),
]  # fmt: skip
CLIPPING: list[tuple[str, dict[str, Any]]] = [
    ("DDIM", {}),
    ("HeunDiscrete", {"clip_sample": True}),
    ("DPMSolverMultistep", {"thresholding": True}),
    ("UniPCMultistep", {"thresholding": True}),
]
NOISY: list[tuple[str, dict[str, Any]]] = [
    ("FlowMatchEulerDiscrete", {"stochastic_sampling": True}),
    ("DPMSolverMultistep", SDE),
    ("DPMSolverSinglestep", {**SDE, "lower_order_final": True}),
    ("EDMDPMSolverMultistep", SDE),
    *((name, {}) for name in ("EulerAncestralDiscrete", "KDPM2AncestralDiscrete", "LCM", "TCD", "DDPM", "SASolver")),
    *((name, {}) for name in ("CogVideoXDPM", "FlowMatchLCM", "SCM")),
]


def made(name: str, settings: dict[str, Any]) -> Any:
    """A scheduler of one of the rows."""
    return getattr(diffusers, f"{name}Scheduler")(**settings)


def _named(rows: list[tuple[str, dict[str, Any]]]) -> dict[str, Callable[[], Any]]:
    return {f"{name}({', '.join(f'{k}={v}' for k, v in s.items())})": partial(made, name, s) for name, s in rows}


DETERMINISTIC = {
    **_named(ROWS),
    "FlowMultistep": partial(FlowMultistep, **FLOW),
    "DiffusionMultistep": partial(DiffusionMultistep, prediction_type="epsilon"),
}
CLIPS, ADDS_NOISE = _named(CLIPPING), _named(NOISY)


def given_to_denoiser(scheduler: Any, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The latent as pipelines hand it over: a flow's schedulers have no scale."""
    name = type(scheduler).__name__
    return x if name.startswith("FlowMa") else scheduler.scale_model_input(x, t)


def first_noise(scheduler: Any, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """The latent that a run starts from."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise if type(scheduler).__name__.startswith("FlowMa") else noise * float(scheduler.init_noise_sigma)
