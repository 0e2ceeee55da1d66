"""From a name, a folder or a hub id to a diffusers pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from .core.errors import StackError
from .core.facts import best_dtype
from .reference.load import MODELS, REFERENCES, load

# Pipelines that are ours rather than diffusers'; a saved folder names them in model_index.json.
_OWN = {known.pipeline.__name__: known.pipeline for known in REFERENCES.values()}


def load_pipeline(name: str, dtype: torch.dtype | None = None, device: str | None = None) -> Any:
    """A pipeline by reference-model name, local diffusers folder or hub id, in the machine's fastest dtype.

    Raises:
        StackError: unknown name, a folder that holds no diffusers pipeline, a device that is not there.
    """
    place = device_of(device)
    dtype = dtype or best_dtype(place)
    pipe = load(name, dtype) if name in REFERENCES else _from_pretrained(name, dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(place)


def device_of(name: str | None) -> torch.device:
    """The device by this name; by default CUDA where there is one."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise StackError(f"unknown device {name!r}: expected cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise StackError(
            f"device {name!r} is not here: expected cpu, or one of {torch.cuda.device_count()} CUDA devices"
        )
    if device.type not in ("cpu", "cuda"):
        raise StackError(f"device {name!r} is not supported: expected cpu or cuda")
    return device


def _from_pretrained(name: str, dtype: torch.dtype) -> Any:
    from diffusers import DiffusionPipeline

    folder = Path(name)
    if folder.is_dir():
        index = folder / "model_index.json"
        if not index.is_file():
            raise StackError(f"{name} is no diffusers pipeline: expected a folder with model_index.json")
        own = _OWN.get(json.loads(index.read_text()).get("_class_name", ""))
        return _guarded(own or DiffusionPipeline, name, dtype)
    if name.count("/") != 1:
        raise StackError(
            f"unknown model {name!r}: expected one of {', '.join(MODELS)}, "
            "a local diffusers folder, or a hub id OWNER/NAME"
        )
    return _guarded(DiffusionPipeline, name, dtype)


def _guarded(cls: Any, name: str, dtype: torch.dtype) -> Any:
    try:
        return cls.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StackError(f"cannot load {name!r}: expected a diffusers pipeline, got: {reason}") from None
