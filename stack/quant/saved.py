"""A quantized denoiser as a file: rounded weights as they are, everything else as it was. Nothing is rounded again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..core.errors import StackError
from ..core.facts import machine_of
from ..core.files import inside, reason, whole
from ..core.stand_in import no_original
from ..core.validate import checked
from ..distill.side import SideLinear
from .backends.base import LibraryLinear
from .fits import FILE, Entry, check_fit, entry_of
from .formats import Stored
from .kernels.product import Kernel, kernel_for, unpack
from .kernels.shared import SharedRows
from .linears.int8 import Int8Linear
from .linears.two_precisions import TwoPrecisions
from .linears.weight_only import WeightOnlyLinear
from .schemes import SCHEMES

UNSAVED: dict[type[nn.Module], str] = {
    LibraryLinear: "by another library",
    TwoPrecisions: "in two precisions",
}


def save_denoiser(denoiser: nn.Module, folder: Path) -> int:
    """Write a denoiser whose linears this package converted; returns how many were.

    Raises:
        StackError: none was, or some were converted by another library, or are kept in two precisions.
    """
    entries: dict[str, dict[str, Any]] = {}
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
    named = _without_branches(denoiser)
    plain = {named(name): tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    about = {"linears": json.dumps({named(path): entry for path, entry in entries.items()})}
    with whole(folder / FILE) as made:
        save_file(plain, made, metadata=about)
    return len(entries)


def _without_branches(denoiser: nn.Module) -> Callable[[str], str]:
    """Names as they are without the adapters that stand beside linears: those are put beside them again."""
    beside = {f"{path}.base": path for path, module in denoiser.named_modules() if isinstance(module, SideLinear)}

    def named(name: str) -> str:
        base = next((base for base in (name, name.rpartition(".")[0]) if base in beside), None)
        return name if base is None else beside[base] + name[len(base) :]

    return named


@dataclass(frozen=True)
class Restored:
    """The linears and tensors of a file, checked against this denoiser and not on it yet."""

    denoiser: nn.Module
    linears: dict[str, nn.Module]
    tensors: dict[str, torch.Tensor]

    def put_on(self) -> None:
        """Give the denoiser these weights, for good."""
        for path, module in self.linears.items():
            parent, _, name = path.rpartition(".")
            self.denoiser.get_submodule(parent)._modules[name] = module
            module.register_state_dict_post_hook(no_original)
        self.denoiser.load_state_dict(self.tensors, assign=True)


def put_on(all_of_them: Sequence[Restored]) -> None:
    """Give denoisers their weights, for good; an exception leaves all of them as they were."""
    parts = [module for one in all_of_them for module in one.denoiser.modules()]
    before = [(dict(m._modules), dict(m._parameters), dict(m._buffers)) for m in parts]
    try:
        for one in all_of_them:
            one.put_on()
    except BaseException:
        for part, (modules, parameters, buffers) in zip(parts, before, strict=True):
            part._modules, part._parameters, part._buffers = modules, parameters, buffers
        raise


def read_denoiser(denoiser: nn.Module, folder: Path) -> Restored:
    """The weights of a file for a denoiser, which may be on the meta device. Nothing is changed.

    Raises:
        StackError: the file is missing, damaged or of another model, or the denoiser is rounded already.
    """
    source = inside(folder, FILE, str(folder), links=False)
    if not source.is_file():
        raise StackError(f"expected {FILE} in {folder}: write it with Stack.save()")
    device = next(denoiser.parameters()).device
    place = torch.device("cpu") if device.type == "meta" else device
    try:
        with safe_open(source, "pt", str(place)) as file:
            header = json.loads((file.metadata() or {}).get("linears", "{}"))
            # Copied: a file's tensors begin anywhere, and products of floats depend on where in a cache line
            # rows begin.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no dict: not iterable
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise StackError(f"cannot read {source} ({reason(error)}): it is damaged, save() it again") from None
    tables = checked(dict[str, dict[str, Any]], header, f"{FILE}: linears")
    entries = {path: entry_of(path, table) for path, table in tables.items()}
    check_fit(denoiser, entries, tensors)
    kernel, shared = kernel_for(machine_of(place)), _shared(entries)
    linears = {path: _restored(path, entry, tensors, kernel, shared) for path, entry in entries.items()}
    rounded = {f"{path}.weight" for path in entries}
    own = {name: tensors[name] for name in denoiser.state_dict() if name not in rounded}
    return Restored(denoiser, linears, own)


def _tensors(denoiser: nn.Module) -> dict[str, torch.Tensor]:
    """What a state dict holds of the modules as they are; that of a quantized model has the original weights."""
    found: dict[str, torch.Tensor] = dict(denoiser.named_parameters(remove_duplicate=False))
    for path, module in denoiser.named_modules():
        kept = {name: buffer for name, buffer in module._buffers.items() if buffer is not None}
        found |= {f"{path}.{n}": buffer for n, buffer in kept.items() if n not in module._non_persistent_buffers_set}
    return found


def _shared(entries: dict[str, Entry]) -> dict[int, tuple[SharedRows, list[str]]]:
    """Rounded rows by group, and its members in order."""
    members: dict[int, list[str]] = {}
    for path, entry in entries.items():
        if entry.scheme == "int8":
            members.setdefault(entry.group, []).append(path)
    return {group: (SharedRows(len(paths)), paths) for group, paths in members.items()}


def _restored(
    path: str,
    entry: Entry,
    tensors: dict[str, torch.Tensor],
    kernel: Kernel,
    shared: dict[int, tuple[SharedRows, list[str]]],
) -> nn.Module:
    values, step = tensors[f"{path}.values"], tensors[f"{path}.step"]
    features = values.shape[1] if entry.scheme == "int8" else entry.features
    linear = nn.Linear(features, len(values), bias=False, device="meta")
    if (bias := tensors.get(f"{path}.bias")) is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    if entry.scheme != "int8":
        scheme = replace(SCHEMES[entry.scheme], group=entry.group_size)
        stored = Stored(scheme, values, step, tensors.get(f"{path}.low"), features)
        return WeightOnlyLinear(linear, scheme, stored)
    if int(values.short().abs().max()) > kernel.weight_levels:
        raise StackError(
            f"{path} was saved with 127 levels, which this machine multiplies wrongly ({kernel.why}): quantize it here"
        )
    rows, members = shared[entry.group]
    return Int8Linear(linear, kernel, rows, members.index(path), (values, step))
