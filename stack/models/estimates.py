"""What an output amounts to behind each of the deterministic samplers of diffusers: an estimate of the clean sample.

At a call with noise level (alpha, sigma), x = alpha x0 + sigma noise is what the denoiser is given, m its output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
from diffusers.schedulers.scheduling_ddim_parallel import DDIMParallelScheduler
from diffusers.schedulers.scheduling_deis_multistep import DEISMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_singlestep import DPMSolverSinglestepScheduler
from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_map_euler_discrete import FlowMapEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_ipndm import IPNDMScheduler
from diffusers.schedulers.scheduling_k_dpm_2_discrete import KDPM2DiscreteScheduler
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from ..core.errors import StackError, choose

# By where a sampler keeps the noise level of a call. None of those that add noise on every step is among them.
FLOW = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMapEulerDiscreteScheduler)
CUMULATIVE = (DDIMScheduler, DDIMParallelScheduler, CogVideoXDDIMScheduler, PNDMScheduler)
SIGMAS = (DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, DEISMultistepScheduler, UniPCMultistepScheduler)
SCALED = (EulerDiscreteScheduler, HeunDiscreteScheduler, KDPM2DiscreteScheduler, LMSDiscreteScheduler)
PRECONDITIONED = (EDMEulerScheduler, EDMDPMSolverMultistepScheduler)
KNOWN = (*FLOW, *CUMULATIVE, *SIGMAS, *SCALED, *PRECONDITIONED, IPNDMScheduler)
NO_NOISE = -1e-3  # in place of a d of 0


@dataclass(frozen=True)
class Estimate:
    """What an output m at x amounts to: x0 = c x + d m.

    Attributes:
        scale: x over the sample that the sampler itself steps: some hand the denoiser a scaled one.
    """

    c: float
    d: float
    scale: float = 1.0


def estimate_at(scheduler: Any, call: int) -> Estimate:
    """The estimate of a call, of a scheduler that is about to make it.

    Raises:
        StackError: the scheduler is none of `KNOWN`, or its `prediction_type` is unknown.
    """
    t, one = scheduler.timesteps[call], torch.ones(1, dtype=torch.float64)
    if isinstance(scheduler, FLOW):
        return flow_estimate(*scheduler.sigmas[[call, -1]].tolist())
    if isinstance(scheduler, PRECONDITIONED):
        scale, sigma = float(scheduler.scale_model_input(one, t)), scheduler.sigmas[call]
        c, d = (float(scheduler.precondition_outputs(*xm, sigma)) for xm in ((one / scale, 0 * one), (0 * one, one)))
        return Estimate(c, d, scale)
    if isinstance(scheduler, SCALED):  # alpha is the scale itself, also at the levels between two steps
        scale = float(scheduler.scale_model_input(one, t))
        return _estimate(scheduler.config.prediction_type, scale, (1 - scale**2) ** 0.5, scale)
    if isinstance(scheduler, IPNDMScheduler):
        return _estimate("v_prediction", float(scheduler.alphas[call]), float(scheduler.betas[call]))
    if isinstance(scheduler, CUMULATIVE):
        share = float(scheduler.alphas_cumprod[int(t)])
        return _estimate(scheduler.config.prediction_type, share**0.5, (1 - share) ** 0.5)
    if isinstance(scheduler, SIGMAS):
        sigma = float(scheduler.sigmas[call])
        alpha = 1 - sigma
        if not scheduler.config.use_flow_sigmas:
            alpha = (1 + sigma**2) ** -0.5
            sigma *= alpha
        return _estimate(scheduler.config.prediction_type, alpha, sigma)
    raise StackError(f"{type(scheduler).__name__}: expected a sampler whose noise levels are known")


def flow_estimate(sigma: float, end: float = 0.0) -> Estimate:
    """Of a flow at this level: m is the direction of rising levels, whose clean end is at 0, or at 1 for some.

    At the end itself a step is of length 0 and its output counts for nothing, but must not be divided by 0.
    """
    return Estimate(1.0, end - sigma or NO_NOISE)


def _estimate(kind: str, alpha: float, sigma: float, scale: float = 1.0) -> Estimate:
    if kind == "epsilon":
        return Estimate(1 / alpha, -sigma / alpha, scale)
    if kind == "v_prediction":
        return Estimate(alpha, -sigma, scale)
    if kind == "flow_prediction":
        return Estimate(1.0, -sigma, scale)
    if kind == "sample":
        return Estimate(0.0, 1.0, scale)
    raise choose("prediction_type", kind, ["epsilon", "v_prediction", "flow_prediction", "sample"])
