"""torchao: the fast backend for GPUs, with its own kernels under `torch.compile`.

In eager mode its dynamic schemes are slower than bf16 on any device; compile the denoiser's blocks to gain from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ...core.errors import StackError
from ...core.facts import Machine
from ...core.quiet import quiet
from ..kernels.product import FEWEST_ROWS
from ..schemes import Scheme
from .base import LibraryLinear, storage_bytes
from .libraries import Library

INT_MULTIPLE, FLOAT_MULTIPLE = 8, 16  # of torch._int_mm and torch._scaled_mm on CUDA
FP8_CAPABILITY = (8, 9)
LIBRARY = Library("torchao", "torchao.quantization", "torchao>=0.15")
FOUR_BITS = Library("torchao", "mslk", "mslk>=1.0")  # whose kernels torchao multiplies 4-bit weights with
# A row of zeros would get the step 0 and give NaN.
SMALLEST_ROW = 1e-12


def _library() -> Any:
    with quiet():  # it warns about kernels built for other machines: nothing a user can act on
        return LIBRARY.load()


def _config(scheme: Scheme) -> Any:
    library = _library()
    if scheme.name == "int8":  # torchao would otherwise change process-wide compiler settings
        return library.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    if scheme.name == "int8-weight":
        return library.Int8WeightOnlyConfig(set_inductor_config=False)
    if scheme.name == "fp8-weight":
        return library.Float8WeightOnlyConfig(set_inductor_config=False)
    if scheme.name == "fp8":
        return library.Float8DynamicActivationFloat8WeightConfig(
            granularity=library.PerRow(), activation_value_lb=SMALLEST_ROW, set_inductor_config=False
        )
    return library.Int4WeightOnlyConfig(group_size=scheme.group, set_inductor_config=False)


class TorchAO:
    """`pip install 'torchao>=0.15'`."""

    name = "torchao"
    rounds_in_steps = True

    def refuses(self, scheme: Scheme, machine: Machine) -> str:
        if scheme.kind == "nf4":
            return "torchao has no nf4: use backend 'native' or 'bitsandbytes', or scheme 'int4-weight'"
        if machine.device not in ("cpu", "cuda"):
            return f"torchao is known to run on cpu and cuda, not on {machine.device}"
        if scheme.name == "fp8" and (machine.device != "cuda" or machine.capability < FP8_CAPABILITY):
            return (
                f"torchao multiplies 8-bit floats only on CUDA from capability 8.9 on, not on {machine.device} "
                f"{machine.vector}".rstrip()
                + ": use 'int8', or 'fp8-weight' for memory alone"
            )
        if scheme.name == "int4-weight" and machine.device != "cuda":
            return f"torchao has no 4-bit product on {machine.device}: use backend 'native'"
        if scheme.name == "int4-weight" and FOUR_BITS.missing:
            return f"{FOUR_BITS.missing}, or use backend 'native'"
        return LIBRARY.missing

    def kernel(self, scheme: Scheme, machine: Machine) -> str:
        if scheme.rounds_activations:
            return "torchao's own kernels, which gain only under torch.compile"
        return "torchao's weight-only product: for memory, not for speed"

    def multiple(self, scheme: Scheme, machine: Machine) -> int:
        if scheme.weight_bits == 4:
            return scheme.group
        return FLOAT_MULTIPLE if scheme.kind == "float" else INT_MULTIPLE

    def prepare(self, scheme: Scheme, device: torch.device) -> None:
        _config(scheme)

    def convert(self, linears: Sequence[nn.Linear], scheme: Scheme) -> list[nn.Module]:
        return [_convert(linear, scheme) for linear in linears]

    def held_bytes(self, module: nn.Module) -> int:
        assert isinstance(module, LibraryLinear) and isinstance(module.linear, nn.Linear)
        return storage_bytes([module.linear.weight])


def _convert(linear: nn.Linear, scheme: Scheme) -> LibraryLinear:
    # Not a copy of the linear, which would hold its weight without the adapter that is fused into it.
    own = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    own.weight, own.bias = nn.Parameter(linear.weight.detach().clone(), requires_grad=False), linear.bias
    holder = nn.Sequential(own)
    _library().quantize_(holder, _config(scheme))
    converted = holder[0]
    assert isinstance(converted, nn.Linear)
    if type(converted.weight) is nn.Parameter:
        raise StackError(f"torchao left a linear of shape {tuple(linear.weight.shape)} as it was: use backend='native'")
    fewest = FEWEST_ROWS if scheme.rounds_activations else 1
    return LibraryLinear(converted, (linear.in_features, linear.out_features), fewest)
