"""From a pipeline to its denoiser."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from ..core.errors import StackError


def denoiser_of(pipe: Any) -> nn.Module:
    """The transformer of a pipeline.

    Raises:
        StackError: no diffusers pipeline, or one without a transformer.
    """
    from diffusers import DiffusionPipeline

    if not isinstance(pipe, DiffusionPipeline):
        raise StackError(
            f"cannot accelerate a {type(pipe).__name__}: expected a diffusers pipeline or its transformer module"
        )
    if "transformer" not in inspect.signature(type(pipe).__init__).parameters:
        raise StackError(f"{type(pipe).__name__} has no transformer: expected a pipeline of a diffusion transformer")
    return pipe.transformer
