"""From a pipeline to its denoiser."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..core.errors import StackError


def denoiser_of(pipe: Any) -> nn.Module:
    """The transformer of a pipeline, or its U-Net.

    Raises:
        StackError: no diffusers pipeline, or one without either.
    """
    from diffusers import DiffusionPipeline, ModularPipeline

    name = type(pipe).__name__
    if isinstance(pipe, ModularPipeline):
        raise StackError(f"{name} is a modular pipeline, expected a DiffusionPipeline: try Stack(pipe.transformer)")
    if not isinstance(pipe, DiffusionPipeline):
        raise StackError(f"cannot accelerate a {name}: expected a diffusers pipeline or its transformer module")
    part = next((part for part in ("transformer", "unet") if part in vars(pipe)), "")
    if not part:
        other = next((part for part in ("prior", "decoder") if part in vars(pipe)), "")
        denoises = f", its denoiser is a {other}" if other else ""
        raise StackError(f"{name} has no transformer and no unet{denoises}: expected a pipeline of a diffusion model")
    denoiser: nn.Module | None = vars(pipe)[part]
    if denoiser is None:
        raise StackError(f"the {part} of this {name} is None: load the pipeline with it, or set pipe.{part}")
    return denoiser
