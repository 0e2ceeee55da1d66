"""From a card to checked updates, component by component."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.utils import convert_unet_state_dict_to_peft
from torch import nn

from ..core.errors import StackError
from .card import Card
from .lora import ALPHA, BIAS, DOWN, UP, LoraFile, LowRank, read_lora, updates

Updates = dict[str, dict[str, LowRank]]
COMPONENTS = ("transformer", "transformer_2", "unet")


def components_of(card: Card, denoiser: nn.Module, pipe: Any | None) -> dict[str, nn.Module]:
    """The modules that a card's files are for, by name.

    Raises:
        StackError: the pipeline lacks one, or shares its steps between two in another way than the card.
    """
    names = list(card.weights.files) if card.weights else []
    # A bare denoiser is whichever component the card's only file is for.
    known: dict[str, Any] = dict.fromkeys(names[:1], denoiser) if pipe is None else dict(pipe.components)
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
        file = in_diffusers_layout(read_lora(path), path, loader_of(card, pipe), parts[component])
        found[component] = updates(file, parts[component], component, card.weights.alpha)
    return found


def loader_of(card: Card, pipe: Any | None) -> Any | None:
    """The pipeline class that knows the layouts of LoRAs for this model: this one's, else the card's; None for none."""
    known = card.pipeline in dir(diffusers)
    found = type(pipe) if isinstance(pipe, LoraBaseMixin) else getattr(diffusers, card.pipeline) if known else None
    return found if found is not None and issubclass(found, LoraBaseMixin) else None


def in_diffusers_layout(file: LoraFile, path: Path, loader: Any | None, denoiser: nn.Module) -> LoraFile:
    """A file of another tool's layout as diffusers' own converters read it; a plain one as it is.

    Args:
        loader: see `loader_of`.

    Raises:
        StackError: diffusers does not know the layout, or nothing says which model it is of.
    """
    odd = next(
        (key for key in file.state if not key.endswith((DOWN, UP, BIAS, ALPHA)) or not _is_of(key, denoiser)), ""
    )
    if not odd:
        return file
    if loader is None:
        raise StackError(
            f"{file.name} does not fit this model: expected LoRA keys of its linears, found {odd}; "
            "other layouts are read for a diffusers pipeline that loads LoRAs"
        )
    config = denoiser.config if isinstance(denoiser, ConfigMixin) else None
    try:
        # U-Nets' loaders number the blocks of other layouts by the configuration; the others leave it unread.
        given = loader.lora_state_dict(
            str(path.parent), weight_name=path.name, use_safetensors=True, unet_config=config
        )
    except Exception as error:  # converters raise what their string handling runs into
        raise StackError(f"{file.name} does not fit this model: diffusers cannot convert {odd} ({error})") from None
    state = _of_unet(*given[:2]) if isinstance(given, tuple) else given
    # Where a converter has put the alphas into the factors, what is left of each is its rank.
    folded = _has_alphas(file.state) and not _has_alphas(state)
    return LoraFile(file.name, state, 0.0 if folded else file.alpha)


def _is_of(key: str, denoiser: nn.Module) -> bool:
    """Whether a key begins as those of diffusers do: many files have a model's original names for its modules."""
    first = key.partition(".")[0]
    return first in COMPONENTS or first in dict(denoiser.named_children())


def _has_alphas(state: Mapping[str, Any]) -> bool:
    return any(key.endswith(ALPHA) for key in state)


def _of_unet(state: dict[str, torch.Tensor], alphas: Mapping[str, float] | None) -> dict[str, torch.Tensor]:
    """peft's names, with the alphas that the loaders of U-Nets give apart, by the name of a factor or of the module."""
    renamed = convert_unet_state_dict_to_peft(alphas or {})
    own = {key.partition(".lora_A.")[0].removesuffix(ALPHA) + ALPHA: value for key, value in renamed.items()}
    made: dict[str, torch.Tensor] = convert_unet_state_dict_to_peft(state)
    return made | {key: torch.tensor(value) for key, value in own.items()}
