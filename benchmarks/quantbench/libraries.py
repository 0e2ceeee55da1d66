"""Who takes part: bf16, every backend of this package, and quanto's own best 8-bit linears, which no scheme here is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stack.quant.backends import BACKENDS
from stack.quant.backends.base import storage_bytes
from stack.quant.schemes import SCHEMES

Convert = Callable[[Sequence[nn.Linear], Any], list[nn.Module]]


@dataclass(frozen=True)
class Contestant:
    """Six linears of a block, converted.

    Attributes:
        convert: (linears, what they will read) to new modules.
        held_bytes: of the new modules' weights.
    """

    convert: Convert
    held_bytes: Callable[[list[nn.Module]], int]
    compiled: bool = False


def _plain(linears: Sequence[nn.Linear], given: Any) -> list[nn.Module]:
    return list(linears)


def _plain_bytes(linears: list[nn.Module]) -> int:
    return sum(storage_bytes([linear.weight]) for linear in linears if isinstance(linear, nn.Linear))


def _ours(scheme: str, backend: str, compiled: bool) -> Contestant:
    made = BACKENDS[backend]

    def convert(linears: Sequence[nn.Linear], given: Any) -> list[nn.Module]:
        made.prepare(SCHEMES[scheme], linears[0].weight.device)
        groups = [linears[:3], linears[3:4], linears[4:5], linears[5:]]
        return [module for group in groups for module in made.convert(group, SCHEMES[scheme])]

    return Contestant(convert, lambda linears: sum(made.held_bytes(linear) for linear in linears), compiled)


@torch.no_grad()
def _quanto(linears: Sequence[nn.Linear], given: Any) -> list[nn.Module]:
    """Fixed activation scales, learned from the very inputs: as good as quanto can be."""
    from optimum.quanto import Calibration, QLinear, qint8

    new = []
    for linear in linears:
        made = QLinear.from_module(linear, weights=qint8, activations=qint8)
        made.weight, made.bias = nn.Parameter(linear.weight.detach().clone(), requires_grad=False), linear.bias
        new.append(made)
    read = [given.normed] * 3 + [given.attended, given.second, given.hidden]
    with Calibration():
        for linear, x in zip(new, read, strict=True):
            linear(x)
    for linear in new:
        linear.freeze()
    return new


def _quanto_bytes(linears: list[nn.Module]) -> int:
    return sum(storage_bytes([linear.weight]) for linear in linears)  # type: ignore[list-item]  # modules hide what attributes are


CONTESTANTS: dict[str, Contestant] = {
    "bf16": Contestant(_plain, _plain_bytes),
    "bf16 compiled": Contestant(_plain, _plain_bytes, compiled=True),
    "int8 native": _ours("int8", "native", False),
    "int8 native compiled": _ours("int8", "native", True),
    "int8 torchao": _ours("int8", "torchao", False),
    "int8 torchao compiled": _ours("int8", "torchao", True),
    "int8 bitsandbytes": _ours("int8", "bitsandbytes", False),
    "int8 quanto (fixed scales)": Contestant(_quanto, _quanto_bytes),
    "int8-weight native": _ours("int8-weight", "native", False),
    "int8-weight torchao": _ours("int8-weight", "torchao", False),
    "int8-weight quanto": _ours("int8-weight", "quanto", False),
    "int4-weight native": _ours("int4-weight", "native", False),
    "int4-weight quanto": _ours("int4-weight", "quanto", False),
    "nf4 native": _ours("nf4", "native", False),
    "nf4 bitsandbytes": _ours("nf4", "bitsandbytes", False),
    "fp8-weight native": _ours("fp8-weight", "native", False),
    "fp8-weight torchao": _ours("fp8-weight", "torchao", False),
}


@torch.no_grad()
def quanto_in_place(denoiser: nn.Module, paths: Sequence[str], calls: Sequence[dict[str, Any]]) -> None:
    """Exchange linears for quanto's 8-bit ones, their activation scales learned from these calls."""
    from optimum.quanto import Calibration, QLinear, qint8

    new = {}
    for path in paths:
        linear = denoiser.get_submodule(path)
        new[path] = QLinear.from_module(linear, weights=qint8, activations=qint8)
        new[path].weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
        new[path].bias = linear.bias
        denoiser.set_submodule(path, new[path])
    with Calibration():
        for call in calls:
            denoiser(**call)
    for linear in new.values():
        linear.freeze()
