"""From a card to checked updates, component by component."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LoraBaseMixin
from torch import nn

from ..core.errors import StackError
from .card import Card
from .lora import LoraFile, LowRank, read_lora, updates

Updates = dict[str, dict[str, LowRank]]


def components_of(card: Card, denoiser: nn.Module, pipe: Any | None) -> dict[str, nn.Module]:
    """The modules that a card's files are for, by name.

    Raises:
        StackError: the pipeline lacks one, or shares its steps between two in another way than the card.
    """
    names = list(card.weights.files) if card.weights else []
    known: dict[str, Any] = {"transformer": denoiser} if pipe is None else dict(pipe.components)
    for name in names:
        if not isinstance(known.get(name), nn.Module):
            raise StackError(f"card {card.name} has weights for {name!r}: this model has none")
    if card.switch:
        _check_switch(card, pipe)
    return {name: known[name] for name in names}


def _check_switch(card: Card, pipe: Any | None) -> None:
    """Two transformers share the steps at a noise level in diffusers, and by step in the card: they must agree."""
    boundary = None if pipe is None else pipe.config.get("boundary_ratio")
    first = sum(sigma >= boundary for sigma in card.sigmas()) if boundary is not None else 0
    if first != card.switch:
        wanted = f"{card.switch} of {card.steps} steps by the first transformer"
        raise StackError(f"card {card.name} expects {wanted}; with boundary_ratio {boundary} it runs {first}")


def load_updates(card: Card, files: Mapping[str, Path], parts: Mapping[str, nn.Module], pipe: Any | None) -> Updates:
    """Every file of a card, checked against its component. Nothing is changed.

    Raises:
        StackError: see `stack.distill.lora.updates`.
    """
    assert card.weights is not None
    found: Updates = {}
    for component, path in files.items():
        file = in_diffusers_layout(read_lora(path), path, pipe)
        found[component] = updates(file, parts[component], component, card.weights.alpha)
    return found


def in_diffusers_layout(file: LoraFile, path: Path, pipe: Any | None) -> LoraFile:
    """A file of another tool's layout as diffusers reads it for this pipeline; a plain one as it is.

    Raises:
        StackError: diffusers does not know the layout, or there is no pipeline to say which model it is of.
    """
    if file.is_plain:
        return file
    odd = next(key for key in file.state if not key.endswith((".lora_A.weight", ".lora_B.weight", ".alpha")))
    if not isinstance(pipe, LoraBaseMixin):
        raise StackError(
            f"{file.name} does not fit this model: expected LoRA keys of its linears, found {odd}; "
            "other layouts are read for a diffusers pipeline that loads LoRAs"
        )
    try:
        # Alphas are in the factors afterwards, so that none are left to be read.
        state = type(pipe).lora_state_dict(str(path.parent), weight_name=path.name, use_safetensors=True)
    except Exception as error:  # converters raise what their string handling runs into
        raise StackError(f"{file.name} does not fit this model: diffusers cannot convert {odd} ({error})") from None
    return LoraFile(file.name, state[0] if isinstance(state, tuple) else state)
