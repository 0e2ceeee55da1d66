"""The configuration of a saved pipeline, read from its folder without its weights."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.errors import StackError
from ..core.files import read_text, reason
from ..core.validate import checked, shown
from .published import Published, published_models

PARTS = ("transformer", "unet")
# What configurations do not say, and models of one class with latents of one kind have in common.
TOKENS = ("guidance", "size", "frames", "pixels_per_token", "frames_per_token", "text_tokens", "numbers_per_token")


def from_folder(folder: Path) -> Published:
    """A model from a saved pipeline's folder; its weights need not be there.

    What a token stands for is taken from the shipped model of the same class and as many channels; it is unknown where
    there is none.

    Raises:
        StackError: no model_index.json, no configuration of a transformer or a U-Net, or files that are no JSON.
    """
    index = _json(folder / "model_index.json")
    part = next((name for name in PARTS if _is_there(index, name)), "")
    if not part:
        raise StackError(f"{folder} names no transformer and no unet: expected the folder of a diffusion pipeline")
    config = _json(folder / part / "config.json")
    schedule = _json(folder / "scheduler" / "scheduler_config.json")
    name, scheduler = (str(found.get("_class_name", "")) for found in (config, schedule))
    read = Published(
        repo=folder.absolute().name,
        pipeline=str(index.get("_class_name", "")),
        denoiser=name,
        scheduler=scheduler,
        denoisers=2 if _is_there(index, f"{part}_2") else 1,
        config=_plain(config),
        schedule=_plain(schedule),
    )
    like = next((model for model in published_models().values() if _same_tokens(model, read)), None)
    return read if like is None else replace(read, **{entry: vars(like)[entry] for entry in TOKENS})


def _is_there(index: dict[str, Any], part: str) -> bool:
    """Whether a pipeline has this part: (library, class), which are both null where it was saved without."""
    entry = index.get(part)
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)


def _same_tokens(one: Published, other: Published) -> bool:
    """Whether both make their tokens alike: of latents with as many channels, in patches of one size."""
    if one.denoiser != other.denoiser:
        return False
    entries = ("in_channels", "patch_size", "patch_size_t")
    own, others = ([_listed(model.full_config.get(entry)) for entry in entries] for model in (one, other))
    return own == others


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _json(path: Path) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise StackError(f"expected {path.name} of a saved pipeline at {shown(str(path))}, found none")
    try:
        return checked(dict[str, Any], json.loads(read_text(path, str(path))), str(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise StackError(f"{path} is no JSON: {reason(error)}") from None
