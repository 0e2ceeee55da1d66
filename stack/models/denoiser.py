"""From a pipeline to its denoisers."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..core.errors import StackError

NAMES = ("transformer", "unet", "transformer_2")  # of the denoiser; with the last of two alone the other is not called


def denoiser_of(pipe: Any) -> nn.Module:
    """The transformer of a pipeline, or its U-Net; the first one, where it has two.

    Raises:
        StackError: see `denoiser_name`.
    """
    name = denoiser_name(pipe)  # first: not everything has attributes
    denoiser: nn.Module = vars(pipe)[name]
    return denoiser


def denoiser_name(pipe: Any) -> str:
    """The pipeline's name for its denoiser, such as "transformer" or "unet".

    Raises:
        StackError: no diffusers pipeline, or one without either.
    """
    from diffusers import DiffusionPipeline, ModularPipeline

    name = type(pipe).__name__
    if not isinstance(pipe, (DiffusionPipeline, ModularPipeline)):
        raise StackError(f"cannot accelerate a {name}: expected a diffusers pipeline or its transformer module")
    parts = [part for part in NAMES if part in vars(pipe)]
    if not parts:
        other = next((part for part in ("prior", "decoder") if part in vars(pipe)), "")
        denoises = f", its denoiser is a {other}" if other else ""
        raise StackError(f"{name} has no transformer and no unet{denoises}: expected a pipeline of a diffusion model")
    found = next((part for part in parts if vars(pipe)[part] is not None), None)
    if found is None:
        missing = parts[0]
        raise StackError(f"the {missing} of this {name} is None: load the pipeline with it, or set pipe.{missing}")
    if vars(pipe).get("scheduler") is None:
        raise StackError(f"this {name} has no scheduler, which says which step a call is: set pipe.scheduler")
    return found


def other_denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The further denoisers of a pipeline, by its names for them: components of the first one's class."""
    first = denoiser_of(pipe)
    found: dict[str, nn.Module] = {}
    for name, part in vars(pipe).items():
        if type(part) is type(first) and part is not first and part not in found.values():
            found[name] = part
    return found


def all_denoisers(pipe: Any) -> dict[str, nn.Module]:
    """Every denoiser of a pipeline, by its names for them, the first one first.

    Raises:
        StackError: see `denoiser_name`.
    """
    return {denoiser_name(pipe): denoiser_of(pipe), **other_denoisers(pipe)}


def one_denoiser(pipe: Any, what: str) -> None:
    """Refuse what is measured on one denoiser where a pipeline has several.

    Raises:
        StackError: it has.
    """
    if others := other_denoisers(pipe):
        has = f"this {type(pipe).__name__} has {', '.join(others)} as well"
        raise StackError(f"{what} is for a single denoiser, {has}: give the options that it would find")
