"""Facts of an untouched model, read from its configuration."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention
from torch import nn

from .core.facts import Facts, machine_of
from .models.default_size import DefaultSize
from .models.layout import Wiring
from .models.preexisting import execution_device, preexisting_on
from .models.sampler import why_not_linear
from .models.schedule import timetable_ahead
from .quant.backends import BACKENDS
from .quant.prequantized import fewest_bits, quantized_by, rounded_to

HEADS = ("num_attention_heads", "num_heads", "n_heads", "heads_num")  # what configurations call the number of heads


def _levels(pipe: Any | None, steps: int, image_tokens: int) -> tuple[tuple[float, float], ...]:
    """Signal over noise at every step of a call to come, as far as it can be said."""
    made = None if pipe is None else timetable_ahead(pipe.scheduler, steps, image_tokens)
    return made.schedule.levels if made else ()


def _linears(denoiser: nn.Module) -> tuple[tuple[str, int, int], ...]:
    found = ((path, m) for path, m in denoiser.named_modules() if isinstance(m, nn.Linear))
    return tuple((path, linear.out_features, linear.in_features) for path, linear in found)


def _sizes(denoiser: nn.Module, wiring: Wiring) -> tuple[int, int, int]:
    """Width of the output stream, attention heads and their size; 0 where a model does not say it.

    Without blocks the width is what most linears are given.
    """
    config: Any = denoiser.config
    heads = next((config[name] for name in HEADS if isinstance(config.get(name), int)), 0)
    if wiring.width_from:
        linear = denoiser.get_submodule(f"{wiring.blocks(denoiser)[0][0]}.{wiring.width_from}")
        width = int(vars(linear)["in_features"])
    else:
        read = Counter(inputs for _, _, inputs in _linears(denoiser))
        known = wiring.block_lists and isinstance(config.get("attention_head_dim"), int)
        width = heads * config["attention_head_dim"] if known else max(read, key=lambda size: read[size], default=0)
    return width, heads, width // heads if heads else 0


def facts_of(denoiser: Any, wiring: Wiring, pipe: Any | None, steps: int) -> Facts:
    """What is known before anything runs."""
    config = denoiser.config
    width, heads, head_dim = _sizes(denoiser, wiring)
    parameter = next(denoiser.parameters())
    size = DefaultSize(pipe, wiring, config)
    grid = size.grid()
    quantizer = quantized_by(denoiser)
    bits = torch.finfo(parameter.dtype).bits if parameter.dtype.is_floating_point else 8
    return Facts(
        family=wiring.family,
        machine=machine_of(execution_device(denoiser)),
        dtype=str(parameter.dtype).removeprefix("torch."),
        blocks=len(wiring.blocks(denoiser)),
        width=width,
        heads=heads,
        head_dim=head_dim,
        image_tokens=math.prod(grid) if grid else 0,
        text_tokens=size.text(),
        steps=steps,
        guidance="embedded" if config.get("guidance_embeds") else "none",
        weight_bits=fewest_bits(denoiser, bits) if quantizer else bits,
        activation_bits=rounded_to(denoiser, bits),
        quantized_by=quantizer,
        rounds_in_steps=quantizer in BACKENDS and BACKENDS[quantizer].rounds_in_steps,
        pipeline=pipe is not None,
        pipeline_class="" if pipe is None else type(pipe).__name__,
        denoiser_class=type(denoiser).__name__,
        denoisers=1 if pipe is None or vars(pipe).get("transformer_2") is None else 2,
        config=dict(config),
        grid=grid,
        lists=tuple(len(denoiser.get_submodule(name)) for name in wiring.block_lists),
        linears=_linears(denoiser),
        latent=wiring.numbers,
        sampler=sampler_of(wiring, pipe),
        levels=_levels(pipe, steps, math.prod(grid) if grid else 0),
        flow=bool(wiring.flow_scale),
        origin=_origin(denoiser, pipe),
        carries=preexisting_on(denoiser),
        lacks=wiring.lacks,
        wiring=wiring,
    )


def facts_rest_on(denoiser: nn.Module, pipe: Any | None) -> dict[str, Any]:
    """What facts are read from, by name: where an entry has changed they are read again.

    Processors count: those that a pass has put before a user's own are lost when the user sets others.
    """
    processors = (m.processor for m in denoiser.modules() if isinstance(m, AttentionModuleMixin | Attention))
    return {
        "dtype": next(denoiser.parameters()).dtype,
        "device": execution_device(denoiser),
        "what other libraries put on it": preexisting_on(denoiser),
        "attention processors": tuple(processors),
        "scheduler": None if pipe is None else pipe.scheduler,
    }


def sampler_of(wiring: Wiring, pipe: Any | None) -> str:
    """Why a run of the sampler is no sum of its estimates of x0; "" where it is."""
    if pipe is not None:
        return why_not_linear(pipe.scheduler)
    return (
        "" if wiring.flow_scale else f"a bare {wiring.family} denoiser does not tell its sampler: expected its pipeline"
    )


def _origin(denoiser: Any, pipe: Any | None) -> str:
    """The hub id a model was loaded by, or the name of its folder."""
    name = str((denoiser if pipe is None else pipe).config.get("_name_or_path") or "")
    return Path(name).name if Path(name).is_absolute() else name
