"""A quantized denoiser as a file: rounded weights as they are, everything else as it was. Nothing is rounded again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ..core.errors import StackError
from ..core.facts import machine_of
from ..core.stand_in import no_original
from .backends.base import LibraryLinear
from .formats import Stored
from .kernels.product import Kernel, kernel_for, unpack
from .kernels.shared import SharedRows
from .linears.int8 import Int8Linear
from .linears.two_precisions import TwoPrecisions
from .linears.weight_only import WeightOnlyLinear
from .schemes import SCHEMES

FILE = "quantized.safetensors"
Entry = dict[str, Any]
UNSAVED: dict[type[nn.Module], str] = {
    LibraryLinear: "by another library",
    TwoPrecisions: "in two precisions",
}


def save_denoiser(denoiser: nn.Module, folder: Path) -> int:
    """Write a denoiser whose linears this package converted; returns how many were.

    Raises:
        StackError: none was, or some were converted by another library, or are kept in two precisions.
    """
    entries: dict[str, Entry] = {}
    tensors: dict[str, torch.Tensor] = {}
    groups: dict[int, int] = {}
    for path, module in denoiser.named_modules():
        if what := next((text for kind, text in UNSAVED.items() if isinstance(module, kind)), ""):
            raise StackError(f"expected linears converted by the native backend alone, but {path} is kept {what}")
        if isinstance(module, Int8Linear):
            group = groups.setdefault(id(module.shared), len(groups))
            values, step = unpack(module.packed)
            tensors |= {f"{path}.values": values, f"{path}.step": step}
            entries[path] = {"scheme": "int8", "group": group}
        elif isinstance(module, WeightOnlyLinear):
            stored = module.stored
            names = {"values": stored.values, "step": stored.step, "low": stored.low}
            tensors |= {f"{path}.{name}": tensor for name, tensor in names.items() if tensor is not None}
            entries[path] = {
                "scheme": stored.scheme.name,
                "group_size": stored.scheme.group,
                "features": stored.features,
            }
    if not entries:
        raise StackError("0 linears are quantized here: apply() a stack with quantize() before save()")
    tensors |= _tensors(denoiser)
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, folder / FILE, metadata={"linears": json.dumps(entries)})
    return len(entries)


def load_denoiser(denoiser: nn.Module, folder: Path) -> int:
    """Give a denoiser the weights of a file, for good; returns how many linears are quantized.

    The denoiser may be on the meta device: full-precision weights of the quantized linears are never made.

    Raises:
        StackError: the file is missing or does not fit. The denoiser is left as it was.
    """
    source = folder / FILE
    if not source.is_file():
        raise StackError(f"expected {FILE} in {folder}: write it with Stack.save()")
    device = next(denoiser.parameters()).device
    place = torch.device("cpu") if device.type == "meta" else device
    with safe_open(source, "pt", str(place)) as file:
        entries: dict[str, Entry] = json.loads((file.metadata() or {}).get("linears", "{}"))
        # Copied: a file's tensors begin anywhere, and products of floats depend on where in a cache line rows begin.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no dict: not iterable
    _check_fit(denoiser, entries, tensors)
    kernel, shared = kernel_for(machine_of(place)), _shared(entries)
    new = {path: _restored(path, entry, tensors, kernel, shared) for path, entry in entries.items()}
    for path, module in new.items():
        parent, _, name = path.rpartition(".")
        denoiser.get_submodule(parent)._modules[name] = module
        module.register_state_dict_post_hook(no_original)
    own = {name: tensor for name, tensor in tensors.items() if name in _tensors(denoiser)}
    denoiser.load_state_dict(own, assign=True)
    return len(new)


def _tensors(denoiser: nn.Module) -> dict[str, torch.Tensor]:
    """What a state dict holds of the modules as they are; that of a quantized model has the original weights."""
    found: dict[str, torch.Tensor] = dict(denoiser.named_parameters(remove_duplicate=False))
    for path, module in denoiser.named_modules():
        kept = {name: buffer for name, buffer in module._buffers.items() if buffer is not None}
        found |= {f"{path}.{n}": buffer for n, buffer in kept.items() if n not in module._non_persistent_buffers_set}
    return found


def _check_fit(denoiser: nn.Module, entries: dict[str, Entry], tensors: dict[str, torch.Tensor]) -> None:
    linears = {path for path, module in denoiser.named_modules() if type(module) is nn.Linear}
    if not entries or not set(entries) <= linears:
        odd = sorted(set(entries) - linears)
        raise StackError(f"expected a file for this model, but {odd[0] if odd else 'nothing'} is no linear of it")
    weights = {f"{path}.weight" for path in entries}
    for name, tensor in denoiser.state_dict().items():
        if name in weights:
            continue
        if name not in tensors or tensors[name].shape != tensor.shape:
            raise StackError(
                f"expected {name} of shape {tuple(tensor.shape)} in {FILE}: it was saved from another model"
            )


def _shared(entries: dict[str, Entry]) -> dict[int, tuple[SharedRows, list[str]]]:
    """Rounded rows by group, and its members in order."""
    members: dict[int, list[str]] = {}
    for path, entry in entries.items():
        if entry["scheme"] == "int8":
            members.setdefault(entry["group"], []).append(path)
    return {group: (SharedRows(len(paths)), paths) for group, paths in members.items()}


def _restored(
    path: str,
    entry: Entry,
    tensors: dict[str, torch.Tensor],
    kernel: Kernel,
    shared: dict[int, tuple[SharedRows, list[str]]],
) -> nn.Module:
    values, step = tensors[f"{path}.values"], tensors[f"{path}.step"]
    features = values.shape[1] if entry["scheme"] == "int8" else entry["features"]
    linear = nn.Linear(features, len(values), bias=False, device="meta")
    if (bias := tensors.get(f"{path}.bias")) is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    if entry["scheme"] != "int8":
        scheme = replace(SCHEMES[entry["scheme"]], group=entry["group_size"])
        stored = Stored(scheme, values, step, tensors.get(f"{path}.low"), features)
        return WeightOnlyLinear(linear, scheme, stored)
    if int(values.abs().max()) > kernel.weight_levels:
        raise StackError(
            f"{path} was saved with 127 levels, which this machine multiplies wrongly ({kernel.why}): quantize it here"
        )
    rows, members = shared[entry["group"]]
    return Int8Linear(linear, kernel, rows, members.index(path), (values, step))
