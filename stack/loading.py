"""From a name, a folder or a hub id to a diffusers pipeline."""

from __future__ import annotations

import json
import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from .core.errors import StackError
from .core.facts import best_dtype
from .core.files import read_text, reason
from .core.validate import checked, shown
from .reference.load import MODELS, REFERENCES, load

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Pipelines that are ours rather than diffusers'; a saved folder names them in model_index.json.
_OWN = {known.pipeline.__name__: known.pipeline for known in REFERENCES.values()}


def load_pipeline(name: str, dtype: torch.dtype | None = None, device: str | None = None) -> Any:
    """A pipeline by reference-model name, local diffusers folder or hub id, in the machine's fastest dtype.

    Raises:
        StackError: unknown name, a folder that holds no diffusers pipeline, a device that is not there.
    """
    checked(str, name, "model")
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
        device = torch.device(checked(str, name, "device"))
    except (RuntimeError, ValueError):
        raise StackError(f"unknown device {shown(name)}: expected cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        there = f"cpu, or cuda:0 to cuda:{count - 1}" if count else "cpu, as there is no CUDA device"
        raise StackError(f"device {name!r} is not here: expected {there}")
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise StackError(f"device {name!r} is not supported: expected cpu or cuda")
    return device


def _from_pretrained(name: str, dtype: torch.dtype) -> Any:
    from diffusers import DiffusionPipeline

    if os.path.isdir(name):
        index = Path(name) / "model_index.json"
        if not index.is_file():
            raise StackError(f"{name} is no diffusers pipeline: expected a folder with model_index.json")
        try:
            about = checked(dict[str, Any], json.loads(read_text(index, str(index))), str(index))
        except (json.JSONDecodeError, RecursionError) as error:
            raise StackError(f"{index} is no JSON: {reason(error)}") from None
        own = _OWN.get(str(about.get("_class_name", "")))
        return _guarded(own or DiffusionPipeline, name, dtype)
    if not _HUB_ID.fullmatch(name):
        like = get_close_matches(name, MODELS, 1)
        hint = f"; did you mean {like[0]!r}?" if like else ""
        raise StackError(
            f"unknown model {shown(name)}: expected one of {', '.join(MODELS)}, "
            f"a local diffusers folder, or a hub id OWNER/NAME{hint}"
        )
    return _guarded(DiffusionPipeline, name, dtype)


def _guarded(cls: Any, name: str, dtype: torch.dtype) -> Any:
    try:
        return cls.from_pretrained(name, dtype=dtype)
    except Exception as error:  # a damaged folder makes each of the loaders stumble in its own way
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StackError(f"cannot load {name!r}: expected a diffusers pipeline, got: {first}") from None
