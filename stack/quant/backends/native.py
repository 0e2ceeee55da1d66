"""This package's own linears: torch's int8 products on a CPU, weights stored in 8 or 4 bits anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ...core.facts import Machine, machine_of
from ..kernels.product import check_exact, kernel_for
from ..linears.int8 import Int8Linear, convert_group
from ..linears.weight_only import WeightOnlyLinear
from ..schemes import Scheme
from .base import storage_bytes

MULTIPLE_ON_CUDA = 8  # torch._int_mm


class Native:
    """Nothing to install."""

    name = "native"
    rounds_in_steps = True

    def refuses(self, scheme: Scheme, machine: Machine) -> str:
        if scheme.name == "fp8":
            return "the native backend has no product of 8-bit floats: use torchao on a GPU, or 'int8' or 'fp8-weight'"
        if scheme.rounds_activations and machine.device not in ("cpu", "cuda"):
            return f"no int8 product is known for {machine.device}: expected cpu or cuda"
        return ""

    def kernel(self, scheme: Scheme, machine: Machine) -> str:
        if scheme.rounds_activations:
            return kernel_for(machine).why
        return "the stored weight is unpacked for each product: for memory, not for speed"

    def multiple(self, scheme: Scheme, machine: Machine) -> int:
        return MULTIPLE_ON_CUDA if scheme.rounds_activations and machine.device == "cuda" else 1

    def prepare(self, scheme: Scheme, device: torch.device) -> None:
        if scheme.rounds_activations and device.type == "cpu":
            check_exact(kernel_for(machine_of(device)))

    def convert(self, linears: Sequence[nn.Linear], scheme: Scheme) -> list[nn.Module]:
        if not scheme.rounds_activations:
            return [WeightOnlyLinear(linear, scheme) for linear in linears]
        return list(convert_group(linears, kernel_for(machine_of(linears[0].weight.device))))

    def held_bytes(self, module: nn.Module) -> int:
        if isinstance(module, Int8Linear):
            return storage_bytes(module.packed.tensors())
        assert isinstance(module, WeightOnlyLinear)
        return storage_bytes(module.stored.tensors())
