"""diffusers' SeaCache (arXiv:2602.18993) on the reference models: it asks for more than their pipelines tell it.

It wants to know step, noise level and latent of each call. FLUX's and HunyuanVideo's pipelines open a context without
them, and the hook then runs every step in full. Here a hook before the denoiser tells them.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import torch


def latents_of(denoiser: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The latents of a call, (C, T, H, W) each; FLUX's tokens of 2 x 2 values are laid out in place."""
    states = kwargs["hidden_states"]
    if states.ndim == 3:
        side = math.isqrt(states.shape[1])
        placed = states.unflatten(2, (-1, 2, 2)).unflatten(1, (side, side))  # (B, rows, columns, C, 2, 2)
        states = placed.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3).unsqueeze(2)
    return list(states.unbind(0))


def put(pipe: Any, threshold: float, order: int, longest: int) -> None:
    """SeaCache on a pipeline with a flow scheduler.

    Args:
        longest: cached steps in a row; 0 is no limit.
    """
    from diffusers import SeaCacheConfig

    denoiser = pipe.transformer
    denoiser.enable_cache(
        SeaCacheConfig(
            threshold=threshold, residual_order=order, max_consecutive_cached=longest, raw_vision_callback=latents_of
        )
    )

    told = ExitStack()

    def tell(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # The call before has left its own already, since the pipeline leaves the one that it opens around each call.
        told.close()
        index = pipe.scheduler.step_index or 0
        context = module.cache_context(
            "cond", step_index=index, num_inference_steps=len(pipe.scheduler.timesteps),
            sigma=float(pipe.scheduler.sigmas[index]),
        )  # fmt: skip
        told.enter_context(context)

    denoiser.register_forward_pre_hook(tell, with_kwargs=True)
