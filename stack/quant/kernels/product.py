"""Which int8 product a machine computes fast, and exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ...core.errors import StackError
from ...core.facts import Machine
from .rows import ROW_LEVELS, ZERO

# torch._int_mm on CUDA refuses fewer than 17 rows.
FEWEST_ROWS = 32


@dataclass(frozen=True)
class Kernel:
    """An int8 product.

    Attributes:
        name: "onednn" or "int_mm".
        weight_levels: largest magnitude of a rounded weight.
        why: the reason for both, for `explain()`.
    """

    name: str
    weight_levels: int
    why: str


# Works anywhere, and is exact anywhere.
PLAIN = Kernel("int_mm", 127, "torch._int_mm")


def kernel_for(machine: Machine) -> Kernel:
    """The kernel of a machine, from its flags alone.

    Without VNNI, x86 adds two products of unsigned and signed bytes in 16 bits, and saturates: 255 * 127 * 2 > 32767.
    With |w| <= 64 the sum is at most 255 * 64 * 2 = 32640 and every product is exact.
    """
    if machine.device == "cpu" and machine.vector.startswith("AVX"):
        if machine.vnni:
            return Kernel("onednn", 127, f"oneDNN, {machine.vector} with VNNI: 8-bit weights are exact")
        why = f"oneDNN, {machine.vector} without VNNI: weights use 64 levels, since 127 would saturate its 16-bit sums"
        return Kernel("onednn", 64, why)
    return replace(PLAIN, why=f"torch._int_mm on {machine.device} {machine.vector}".rstrip())


@dataclass(frozen=True)
class Packed:
    """A weight in the layout its kernel reads.

    Attributes:
        kernel: whose layout it is.
        weight: opaque for "onednn"; (K, N) int8 for "int_mm".
        step: (N,) float32.
        offset: (N,) float32, minus what the zero point 128 of the rows adds to each output.
        zeros: (N,) int64 zero points, an argument oneDNN insists on.
    """

    kernel: str
    weight: torch.Tensor
    step: torch.Tensor
    offset: torch.Tensor
    zeros: torch.Tensor

    @property
    def opaque(self) -> bool:
        """Whether the weight is in a layout that only its kernel can read."""
        return self.weight.layout != torch.strided

    def tensors(self) -> list[torch.Tensor]:
        """Everything it keeps in memory."""
        return [self.weight, self.step, self.offset, self.zeros]


def pack(kernel: Kernel, values: torch.Tensor, step: torch.Tensor) -> Packed:
    """Lay out a rounded weight: values (N, K) int8, step (N,)."""
    zeros = torch.zeros(len(step), dtype=torch.int64, device=step.device)
    offset = values.sum(1, dtype=torch.int64).to(torch.float32) * step * -ZERO
    weight = torch.ops.onednn.qlinear_prepack(values, None) if kernel.name == "onednn" else _columns(values)
    return Packed(kernel.name, weight, step, offset, zeros)


def unpack(packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
    """The rounded weight again: values (N, K) int8 and steps (N,); packing them gives the same bytes."""
    plain = packed.weight.to_dense() if packed.opaque else packed.weight
    return plain.t().contiguous(), packed.step


def _columns(values: torch.Tensor) -> torch.Tensor:
    """(N, K) as the (K, N) operand of `torch._int_mm`.

    A transposed view, but for K = 1: its strides (1, 1) name no layout, and oneDNN with VNNI then multiplies by the
    wrong bytes (torch 2.13).
    """
    transposed = values.t()
    return transposed if len(transposed) > 1 else torch.empty_like(values.view(1, -1)).copy_(transposed)


def product(values: torch.Tensor, packed: Packed, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(M, K) uint8 rows times a packed weight, in units of the row step: (M, N).

    Multiplied by the row steps it is the output of the linear without its bias.

    Args:
        dtype: of the result, float32 or bfloat16; sums are integers, and scaled in float32, whichever it is.
    """
    if packed.kernel == "int_mm":
        return _int_mm(values, packed).to(dtype)
    # The opaque layout cannot pass through the compiler, so a compiled graph sees one operation of our own.
    call = torch.ops.ditstack.onednn_product if torch.compiler.is_compiling() else _onednn
    return call(values, packed.weight, packed.step, packed.offset, packed.zeros, dtype)


def _onednn(
    values: torch.Tensor,
    weight: torch.Tensor,
    step: torch.Tensor,
    offset: torch.Tensor,
    zeros: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    # Zero point 0 and the correction in the bias: given the zero point 128, oneDNN is up to 1.7 x slower.
    return torch.ops.onednn.qlinear_pointwise(
        values, 1.0, 0, weight, step, zeros, offset, 1.0, 0, dtype, "none", [], ""
    )


# Defined with `Library`, not `custom_op`, whose Python wrapper takes 0.16 ms a call: as long as a small product.
_LIBRARY = torch.library.Library("ditstack", "FRAGMENT")
_LIBRARY.define(
    "onednn_product(Tensor values, Tensor weight, Tensor step, Tensor offset, Tensor zeros, ScalarType dtype) -> Tensor"
)
_LIBRARY.impl("onednn_product", _onednn, "CPU")
_LIBRARY.impl("onednn_product", _onednn, "MkldnnCPU")


@torch.library.register_fake("ditstack::onednn_product", lib=_LIBRARY)
def _(
    values: torch.Tensor,
    weight: torch.Tensor,
    step: torch.Tensor,
    offset: torch.Tensor,
    zeros: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    return values.new_empty((values.shape[0], step.shape[0]), dtype=dtype)


def _int_mm(values: torch.Tensor, packed: Packed) -> torch.Tensor:
    rows = len(values)
    signed = values.bitwise_xor(ZERO).view(torch.int8)  # v - 128 in two's complement
    if rows < FEWEST_ROWS:
        signed = torch.nn.functional.pad(signed, (0, 0, 0, FEWEST_ROWS - rows))
    return torch._int_mm(signed, packed.weight)[:rows] * packed.step


def check_exact(kernel: Kernel) -> None:
    """Multiply the largest values the kernel allows on the CPU, once, before any weight is changed.

    Raises:
        StackError: the product is wrong, which happens when oneDNN is set to ignore instructions the CPU has.
    """
    values = torch.full((32, 64), ZERO + ROW_LEVELS, dtype=torch.uint8)
    packed = pack(kernel, torch.full((64, 64), kernel.weight_levels, dtype=torch.int8), torch.ones(64))
    expected, got = 64 * ROW_LEVELS * kernel.weight_levels, float(product(values, packed).min())
    if got != expected:
        raise StackError(
            f"expected {expected} from the {kernel.name} int8 product on this machine, got {got:.0f}: "
            "unset ONEDNN_MAX_CPU_ISA, or leave quantize() out"
        )
