"""Whether the tensors of a saved denoiser are whole and fit a model. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..core.errors import StackError
from ..core.validate import Count, check_table
from .linears.int8 import Int8Linear
from .linears.two_precisions import TwoPrecisions
from .linears.weight_only import WeightOnlyLinear
from .schemes import SCHEMES, scheme_named

FILE = "quantized.safetensors"
ROUNDED = (Int8Linear, WeightOnlyLinear, TwoPrecisions)
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Entry:
    """What a file says of one rounded linear.

    Attributes:
        scheme: a name of `stack.quant.schemes`.
        group: of int8 linears with the same number, which round their rows together.
        group_size: weights that share a scale, 0 for all of a row.
        features: inputs, where weights are stored alone.
    """

    scheme: str
    group: Count = 0
    group_size: Count = 0
    features: Count = 0


def entry_of(path: str, table: Mapping[str, Any]) -> Entry:
    """An entry of a file's header.

    Raises:
        StackError: an unknown key, scheme or size.
    """
    entry = Entry(**{"scheme": "", **check_table(Entry, table, f"{FILE}: {path}.")})
    scheme = scheme_named(entry.scheme)
    if scheme.weight_bits == 4 and (not entry.group_size or entry.group_size % 2):
        raise StackError(f"{FILE}: {path}.group_size: expected an even number above 0, got {entry.group_size}")
    if scheme.weight_bits == 8 and entry.group_size:
        raise StackError(f"{FILE}: {path}.group_size: expected 0 for {entry.scheme}, got {entry.group_size}")
    return entry


def check_fit(denoiser: nn.Module, entries: Mapping[str, Entry], tensors: Tensors) -> None:
    """Whether a file has exactly what this denoiser needs, in whole and finite numbers.

    Raises:
        StackError: a linear that the model has not or that is rounded already; a tensor that is missing, too much, of
            another shape or type, or holds NaN or infinity.
    """
    modules = dict(denoiser.named_modules())
    if rounded := [path for path, module in modules.items() if isinstance(module, ROUNDED)]:
        what = f"this model is rounded already ({len(rounded)} linears, {rounded[0]} among them)"
        raise StackError(f"{what}: expected one with its own weights; load the model again, or undo() its stack")
    linears = {path: module for path, module in modules.items() if type(module) is nn.Linear}
    odd = sorted(entries.keys() - linears.keys())
    if odd or not entries:
        raise StackError(f"expected a file for this model, but {odd[0] if odd else 'nothing'} is no linear of it")
    weights = {f"{path}.weight" for path in entries}
    plain = {name: tensor for name, tensor in denoiser.state_dict().items() if name not in weights}
    left = set(tensors) - plain.keys()
    for path, entry in entries.items():
        left -= _check_linear(path, entry, linears[path], tensors)
    if left:
        raise StackError(f"{FILE}: unknown tensor {min(left)}: it was saved from another model")
    for name, tensor in plain.items():
        _check_plain(name, tensor, tensors.get(name))


def _check_linear(path: str, entry: Entry, linear: nn.Linear, tensors: Tensors) -> set[str]:
    """Check the tensors of a rounded linear; returns their names."""
    names = set()
    for part, (dtype, shape) in _parts(entry, linear).items():
        name = f"{path}.{part}"
        names.add(name)
        found = tensors.get(name)
        if found is None or tuple(found.shape) != shape:
            raise _other(name, f"shape {shape}", "none" if found is None else f"{tuple(found.shape)}")
        if found.dtype != dtype if dtype else found.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise _other(name, f"{dtype or 'floating point'}", f"{found.dtype}")
        _check_finite(name, found)
        if part == "step" and not bool((found > 0).all()):
            raise _other(name, "steps above 0", f"{float(found.min())}")
    if entry.scheme != "int8" and entry.features != linear.in_features:
        raise _other(f"{path}.features", f"{linear.in_features}", f"{entry.features}")
    return names


def _parts(entry: Entry, linear: nn.Linear) -> dict[str, tuple[torch.dtype | None, tuple[int, ...]]]:
    """Type (None is any floating point) and shape of what is kept of a linear."""
    rows, features, scheme = linear.out_features, linear.in_features, SCHEMES[entry.scheme]
    if entry.scheme == "int8":
        return {"values": (torch.int8, (rows, features)), "step": (torch.float32, (rows,))}
    if scheme.weight_bits == 8:
        kind = torch.int8 if scheme.kind == "int" else torch.float8_e4m3fn
        return {"values": (kind, (rows, features)), "step": (None, (rows, 1))}
    groups = -(-features // entry.group_size)
    low = {"low": (None, (rows, groups))} if scheme.kind == "int" else {}
    return {"values": (torch.uint8, (rows, groups * entry.group_size // 2)), "step": (None, (rows, groups)), **low}


def _check_plain(name: str, wanted: torch.Tensor, found: torch.Tensor | None) -> None:
    if found is None or found.shape != wanted.shape:
        raise _other(name, f"shape {tuple(wanted.shape)}", "none" if found is None else f"{tuple(found.shape)}")
    if found.is_floating_point() != wanted.is_floating_point():
        raise _other(name, f"{wanted.dtype}", f"{found.dtype}")
    _check_finite(name, found)


def _check_finite(name: str, tensor: torch.Tensor) -> None:
    if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
        raise StackError(f"{FILE}: {name}: expected finite numbers, got NaN or infinity")


def _other(name: str, wanted: str, found: str) -> StackError:
    return StackError(f"{FILE}: {name}: expected {wanted}, got {found}: it is damaged or was saved from another model")
