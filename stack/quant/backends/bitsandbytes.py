"""bitsandbytes: NF4 and LLM.int8, for memory; a GPU's kernels, and a slow path on CPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ...core.facts import Machine
from ..schemes import Scheme
from .base import LibraryLinear, storage_bytes
from .libraries import Library

OUTLIERS = 0.0  # LLM.int8 computes columns above this in 16 bits; 0 rounds all of them
LIBRARY = Library("bitsandbytes", "bitsandbytes", "bitsandbytes>=0.49")


class BitsAndBytes:
    """`pip install 'bitsandbytes>=0.49'`."""

    name = "bitsandbytes"
    rounds_in_steps = False

    def refuses(self, scheme: Scheme, machine: Machine) -> str:
        if scheme.name not in ("nf4", "int8"):
            return f"bitsandbytes has no {scheme.name}: it computes 'nf4' and 'int8'; use backend 'native'"
        if machine.device not in ("cpu", "cuda"):
            return f"bitsandbytes is known to run on cpu and cuda, not on {machine.device}"
        return LIBRARY.missing

    def kernel(self, scheme: Scheme, machine: Machine) -> str:
        if scheme.name == "nf4":
            return "bitsandbytes' 4-bit product: for memory, not for speed"
        return "LLM.int8 without its outlier columns: for memory, not for speed"

    def multiple(self, scheme: Scheme, machine: Machine) -> int:
        return scheme.group or 8

    def prepare(self, scheme: Scheme, device: torch.device) -> None:
        LIBRARY.load()

    def convert(self, linears: Sequence[nn.Linear], scheme: Scheme) -> list[nn.Module]:
        build = _nf4 if scheme.name == "nf4" else _int8
        return [LibraryLinear(build(linear), (linear.in_features, linear.out_features)) for linear in linears]

    def held_bytes(self, module: nn.Module) -> int:
        assert isinstance(module, LibraryLinear)
        linear: Any = module.linear
        weight = linear.weight
        if isinstance(linear, LIBRARY.load().nn.Linear4bit):
            return storage_bytes([weight, weight.quant_state.absmax, weight.quant_state.code])
        return storage_bytes([weight, *(t for t in (weight.SCB, linear.state.SCB) if t is not None)])


def _nf4(linear: nn.Linear) -> nn.Module:
    library, device = LIBRARY.load(), linear.weight.device
    new = library.nn.LinearNF4(
        linear.in_features, linear.out_features, bias=False, compute_dtype=linear.weight.dtype, device="meta"
    )
    weight = linear.weight.detach().clone()
    new.weight = library.nn.Params4bit(
        weight, requires_grad=False, quant_type="nf4", compress_statistics=False, blocksize=64
    )
    new.bias = linear.bias
    return new.to(device)


def _int8(linear: nn.Linear) -> nn.Module:
    library, device = LIBRARY.load(), linear.weight.device
    new = library.nn.Linear8bitLt(
        linear.in_features, linear.out_features, bias=False, has_fp16_weights=False, threshold=OUTLIERS, device="meta"
    )
    new.weight = library.nn.Int8Params(linear.weight.detach().clone(), requires_grad=False, has_fp16_weights=False)
    new.bias = linear.bias
    return new.to(device)
