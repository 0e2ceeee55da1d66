"""From a name, a folder or a hub id to a diffusers pipeline."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .core.errors import StackError
from .core.facts import best_dtype
from .core.files import read_text, reason
from .core.quiet import quiet
from .core.validate import checked, shown
from .models.denoiser import denoiser_of
from .models.preexisting import LORA, preexisting_on
from .reference.load import REFERENCES, at_size
from .reference.load import load as load_reference
from .reference.names import MODELS

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Pipelines that are ours rather than diffusers'; a saved folder names them in model_index.json.
_OWN = {known.pipeline.__name__: known.pipeline for known in REFERENCES.values()}


def load(
    name: str,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    size: str | None = None,
    lora: str | Path | None = None,
) -> Any:
    """A pipeline by reference-model name, local diffusers folder or hub id.

    Args:
        dtype: of the weights; by default the one that this machine computes fastest, see `best_dtype`.
        device: "cpu", "cuda" or "cuda:N"; by default CUDA if there is a GPU.
        size: of the pictures, see `sides_of`: loads the reference model for this size, if there is one.
        lora: a file of weights, a folder or a hub id, merged into the model's own weights.

    Raises:
        StackError: unknown name, a folder that holds no diffusers pipeline, a missing device, or a file that is no
            LoRA, is not whole, or holds anything that this model has no place for.
    """
    checked(str, name, "model")
    place = device_of(device)
    dtype = dtype or best_dtype(place)
    trained = at_size(name, size)
    with quiet(), _no_bars():
        pipe = load_reference(trained, dtype) if trained in REFERENCES else _from_pretrained(name, dtype)
        pipe.set_progress_bar_config(disable=True)
        if lora is not None:
            _merge_lora(pipe, str(lora))
    return pipe.to(place)


def _merge_lora(pipe: Any, path: str) -> None:
    """Load a LoRA and merge it into the weights: passes that round or add to weights need them as they will be.

    Raises:
        StackError: no LoRA, one that is not whole, or one that has anything for another model.
    """
    from diffusers.loaders import PeftAdapterMixin
    from diffusers.loaders.lora_base import LoraBaseMixin

    from .distill.whole import check_pairs, check_placed, converted_whole

    # Ours have no text encoders, for which diffusers' loaders of pipelines look.
    own = type(pipe).__name__ in _OWN
    model = denoiser_of(pipe) if own else pipe
    if not isinstance(model, PeftAdapterMixin if own else LoraBaseMixin):
        raise StackError(f"{type(pipe).__name__} takes no LoRA: expected no --lora, got {shown(path)}")
    parts, kind = {"transformer": model} if own else pipe.components, type(pipe).__name__
    try:
        state = _lora_state(path)
        check_pairs(shown(path), state)
        converted = converted_whole(shown(path), kind, state, dict if own else partial(_in_layout, pipe))
        (model.load_lora_adapter if own else model.load_lora_weights)(path)
        if LORA not in preexisting_on(denoiser_of(pipe)):
            raise StackError(f"the LoRA {shown(path)} has no weights for this {kind}'s denoiser")
        check_placed(shown(path), kind, converted, parts)
        if own:
            model.fuse_lora(safe_fusing=True)
            model.unload_lora()
        else:
            names = [name for name in model._lora_loadable_modules if name in model.components]
            model.fuse_lora(components=names, safe_fusing=True)
            # FLUX's would put back the scales of norms that the file has exchanged.
            vars(denoiser_of(pipe)).pop("_transformer_norm_layers", None)
            model.unload_lora_weights()
    except StackError:
        raise
    except Exception as error:  # diffusers, peft and the hub's client each raise kinds of their own
        raise StackError(f"cannot load the LoRA {shown(path)}: {reason(error)}") from None


def _lora_state(path: str) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA by the keys of its file, as diffusers' loaders find it: a file, a folder or a hub id."""
    from diffusers.loaders.lora_base import _fetch_state_dict

    where = dict.fromkeys(
        ("weight_name", "local_files_only", "cache_dir", "force_download", "proxies", "token", "revision", "subfolder")
    )
    about = {"file_type": "attn_procs_weights", "framework": "pytorch"}
    return dict(_fetch_state_dict(path, use_safetensors=True, user_agent=about, allow_pickle=True, **where)[0])


def _in_layout(pipe: Any, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A LoRA's tensors by the keys that the pipeline's loader gives them."""
    unet = pipe.components.get("unet")
    made = type(pipe).lora_state_dict(dict(state), unet_config=None if unet is None else unet.config)
    return dict(made[0] if isinstance(made, tuple) else made)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep the bars that show how a model is loaded off the screen. Afterwards they are as they were."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries: tuple[Any, ...] = (diffusers_logging, transformers_logging)
    shown_before = [one for one in libraries if one.is_progress_bar_enabled()]
    for one in libraries:
        one.disable_progress_bar()
    try:
        yield
    finally:
        for one in shown_before:
            one.enable_progress_bar()


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
