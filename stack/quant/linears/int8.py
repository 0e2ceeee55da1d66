"""The int8 linear of this package: torch's own int8 products, nothing to install."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import nn

from ...core.errors import StackError
from ...core.facts import machine_of
from ...core.no_gradient import NoGradient
from ..kernels.product import PLAIN, Kernel, Packed, kernel_for, pack, product, unpack
from ..kernels.rows import quantize_weight
from ..kernels.shared import SharedRows
from .fixed import fixed_buffer


class Int8Linear(nn.Module):
    """A linear with int8 weights (step per output channel) and int8 activations (step per row, found on the fly).

    y = row_step * (rounded x . rounded W) * channel_step + b.
    Rows do not depend on each other: batched equals one by one. A row of zeros gives exactly the bias; a row with NaN
    or infinity gives NaN or infinity. Takes (..., K) of any float dtype and layout, returns (..., N) in that dtype.

    For inference: a backward pass through it raises. It can be moved and cast: levels and steps stay as they are. In
    oneDNN's layout, which only a CPU knows, the weight is no buffer; a module that leaves the CPU takes it along in the
    plain layout and keeps that.

    Args:
        shared, member: rows it rounds together with others, and which of them it is.
        rounded: values (N, K) and steps (N,) where they are known already; the linear's own weight is not read then.
    """

    values: torch.Tensor | None

    def __init__(
        self,
        linear: nn.Linear,
        kernel: Kernel,
        shared: SharedRows | None = None,
        member: int = 0,
        rounded: tuple[torch.Tensor, torch.Tensor] | None = None,
    ):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("values", None, persistent=False)
        self._keep(pack(kernel, *(rounded or quantize_weight(linear.weight, kernel.weight_levels))))
        self.bias = linear.bias
        self.shared = shared or SharedRows(1)
        self._member = member

    def _keep(self, packed: Packed) -> None:
        self.kernel = packed.kernel
        self._opaque = packed.weight if packed.opaque else None
        self.values = None if packed.opaque else fixed_buffer(packed.weight)
        self.step, self.offset = fixed_buffer(packed.step), fixed_buffer(packed.offset)
        self.zeros = fixed_buffer(packed.zeros)

    @property
    def packed(self) -> Packed:
        """The weight as its kernel reads it."""
        weight = self.values if self._opaque is None else self._opaque
        assert weight is not None
        step, offset = self.step.view(torch.float32), self.offset.view(torch.float32)
        return Packed(self.kernel, weight, step, offset, self.zeros)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """What `.to()`, `.half()` and the like go through."""
        if self._opaque is not None and fn(self.zeros).device.type != "cpu":
            self._keep(pack(PLAIN, *unpack(self.packed)))
        super()._apply(fn, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """What copies are made of: oneDNN's layout can be neither copied nor written."""
        plain = None if self._opaque is None else unpack(self.packed)
        return {**vars(self), "_opaque": plain}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if isinstance(self._opaque, tuple):
            values, step = self._opaque
            kernel = kernel_for(machine_of(step.device))  # of the machine that reads it
            exact = int(values.abs().max()) <= kernel.weight_levels
            self._keep(pack(kernel if exact else PLAIN, values, step))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input (..., K) to (..., N).

        Raises:
            StackError: the last dimension is not K.
        """
        if input.shape[-1] != self.in_features:
            raise StackError(f"expected rows of {self.in_features} features, got shape {tuple(input.shape)}")
        with torch.no_grad():
            out = self._compute(input)
        # A compiler would trace the backward pass ahead of time and meet the error.
        if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and input.requires_grad):
            return out
        return NoGradient.apply(out, input, "an int8 linear has no gradient: undo() the stack before training")

    def _compute(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:-1], self.out_features)
        if x.numel() == 0:
            return x.new_empty(shape)
        values, step = self.shared.rows(self._member, x)
        # Products of rows in bf16 come in bf16, and are scaled in one pass over half the bytes. float16 would overflow.
        dtype = x.dtype if x.dtype == torch.bfloat16 else torch.float32
        out, step = product(values, self.packed, dtype), step.to(dtype)
        if self.bias is None:
            out = out.mul_(step)
        elif torch.compiler.is_compiling():
            out = torch.addcmul(self.bias, out, step)
        else:
            torch.addcmul(self.bias.to(dtype), out, step, out=out)
        return out.to(x.dtype).view(shape)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, kernel={self.kernel}"


def convert_group(linears: Sequence[nn.Linear], kernel: Kernel) -> list[Int8Linear]:
    """Int8 linears that read the same input and round it once between them."""
    shared = SharedRows(len(linears))
    return [Int8Linear(linear, kernel, shared, member) for member, linear in enumerate(linears)]
