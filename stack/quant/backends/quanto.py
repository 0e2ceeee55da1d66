"""optimum-quanto: 8-bit and 4-bit weights; deprecated by diffusers, kept for those who use it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ...core.facts import Machine
from ..schemes import Scheme
from .base import LibraryLinear, storage_bytes
from .libraries import Library

WEIGHTS = {"int8-weight": "qint8", "int4-weight": "qint4", "fp8-weight": "qfloat8"}
LIBRARY = Library("quanto", "optimum.quanto", "optimum-quanto>=0.2.7")


class Quanto:
    """`pip install 'optimum-quanto>=0.2.7'`."""

    name = "quanto"
    rounds_in_steps = False

    def refuses(self, scheme: Scheme, machine: Machine) -> str:
        if scheme.rounds_activations:
            return (
                "quanto rounds activations with fixed scales that it has to be shown data for, not per row (75 % error "
                f"with outliers): use backend 'native' or 'torchao', or '{scheme.name}-weight'"
            )
        if scheme.name not in WEIGHTS:
            return f"quanto has no {scheme.name}: use backend 'native' or 'bitsandbytes', or scheme 'int4-weight'"
        return LIBRARY.missing

    def kernel(self, scheme: Scheme, machine: Machine) -> str:
        return "quanto's weight-only product: for memory, not for speed"

    def multiple(self, scheme: Scheme, machine: Machine) -> int:
        return 128 if scheme.weight_bits == 4 else 1

    def prepare(self, scheme: Scheme, device: torch.device) -> None:
        LIBRARY.load()

    def convert(self, linears: Sequence[nn.Linear], scheme: Scheme) -> list[nn.Module]:
        return [_convert(linear, scheme) for linear in linears]

    def held_bytes(self, module: nn.Module) -> int:
        assert isinstance(module, LibraryLinear) and isinstance(module.linear, nn.Linear)
        return storage_bytes([module.linear.weight])


def _convert(linear: nn.Linear, scheme: Scheme) -> LibraryLinear:
    library = LIBRARY.load()
    kind = getattr(library, WEIGHTS[scheme.name])
    new = library.QLinear.from_module(linear, weights=kind)
    # Its own copy is what it rounds: `from_module` keeps the very parameter.
    new.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
    new.bias = linear.bias
    new.freeze()
    return LibraryLinear(new, (linear.in_features, linear.out_features))
