"""Whether all of a LoRA file reaches a model: loaders leave out what they cannot place, and only log it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..core.errors import StackError
from ..core.progress import counted

State = Mapping[str, torch.Tensor]
# Both factors of an update: lora_A and lora_B, lora_down and lora_up, lora.down, lora_linear_layer.down, lora1.down.
_FACTOR = re.compile(r"(lora_|lora\w*\.)(A|B|down|up)(?=\.)")
_PARTNERS = {"A": "B", "B": "A", "down": "up", "up": "down"}


def check_pairs(name: str, state: State) -> None:
    """Refuse a file that holds one factor of an update without the other, as one that is cut short does.

    Args:
        name: of the file, for the error.

    Raises:
        StackError: it does.
    """
    lone = [key for key in state if (partner := _partner(key)) and partner not in state]
    if lone:
        what = f"{counted(len(lone), 'factor')} alone, first {lone[0]} without {_partner(lone[0])}"
        raise StackError(f"the LoRA {name} is not whole: it has {what}; get the file again")


def converted_whole(name: str, kind: str, state: State, convert: Callable[[State], State]) -> State:
    """What a conversion to a loader's own names makes of a file, in other numbers; refuses one that it drops part of.

    A conversion renames, splits and joins tensors. So it is given others of the same sizes and rank 1, each filled with
    a number of its own: a number that is in nothing it makes belongs to a key that it drops. Updates of zero may be
    dropped.

    Args:
        name, kind: of the file and of the pipeline, for the error.

    Raises:
        StackError: updates that the conversion drops or refuses.
    """
    numbers = {key: float(number) for number, key in enumerate(state, 1)}
    try:
        made = convert({key: _filled(key, tensor, numbers[key]) for key, tensor in state.items()})
    except Exception as error:  # converters raise what their string handling runs into, some with the keys in question
        named = [key for key in state if _is_down(key) and key in str(error)]
        _refuse(name, kind, named)
        raise
    kept = {number for tensor in made.values() for number in tensor.float().unique().tolist()}
    dropped = [key for key in state if _is_down(key) and numbers[key] not in kept]
    _refuse(name, kind, [key for key in dropped if state[key].any() and state[str(_partner(key))].any()])
    return made


def check_placed(name: str, kind: str, converted: Iterable[str], parts: Mapping[str, Any]) -> None:
    """Refuse a file of which a loader has left something out.

    Args:
        converted: the file's keys by the loader's names.
        parts: modules by the names that those begin with, with the LoRA on them.

    Raises:
        StackError: updates that are on no module.
    """
    from peft.tuners.lora import LoraLayer

    by_part: dict[str, list[str]] = {}
    for key in filter(_is_down, converted):
        by_part.setdefault(key.partition(".")[0], []).append(key)
    lost: list[str] = []
    for part, keys in by_part.items():
        module = parts.get(part)
        modules = module.named_modules() if isinstance(module, nn.Module) else ()
        layers = {name for name, layer in modules if isinstance(layer, LoraLayer)}
        if len(layers) < len(keys):  # else each is somewhere, under whatever name
            placed = [_path(name) in layers for name in _named_as_modules(keys)]
            lost += [key for key, there in zip(keys, placed, strict=True) if not there] if any(placed) else keys
    _refuse(name, kind, lost)


def _refuse(name: str, kind: str, lost: Sequence[str]) -> None:
    if lost:
        what = f"no place for {counted(len(lost), 'update')} of it, first {lost[0]}"
        raise StackError(f"the LoRA {name} does not fit this {kind}: {what}; expected a LoRA of this model")


def _partner(key: str) -> str | None:
    """The key of the other factor; None for what is no factor."""
    found = _FACTOR.search(key)
    if found is None or key.endswith(".bias"):
        return None
    return key[: found.start(2)] + _PARTNERS[found[2]] + key[found.end() :]


def _is_down(key: str) -> bool:
    """Whether this is the factor that its input meets first."""
    found = _FACTOR.search(key)
    return found is not None and found[2] in ("A", "down") and not key.endswith(".bias")


def _filled(key: str, tensor: torch.Tensor, number: float) -> torch.Tensor:
    """A tensor of rank 1 in the place of a factor, and an alpha that leaves it unscaled; others in their size."""
    if not _partner(key):
        return torch.ones_like(tensor) if "alpha" in key else torch.full_like(tensor, number, dtype=torch.float32)
    shape = list(tensor.shape)
    if shape:
        shape[0 if _is_down(key) else min(1, len(shape) - 1)] = 1
    return torch.full(shape, number)


def _named_as_modules(keys: Sequence[str]) -> list[str]:
    """Keys with the module's own name before the factor's: U-Nets' have an attention processor in it."""
    from diffusers.utils import convert_unet_state_dict_to_peft

    return [next(iter(convert_unet_state_dict_to_peft({key: None}))) for key in keys]


def _path(key: str) -> str:
    """The module of a factor, without the name of the part that it is in."""
    found = _FACTOR.search(key)
    assert found is not None
    return key[: found.start()].rstrip("._").partition(".")[2]
