"""Rounding: activations per row (token) on the fly, weights per output channel once. Symmetric, absmax scales.

Rows are kept as uint8 with the zero at 128, since x86 multiplies unsigned by signed bytes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ...core.errors import StackError
from .pieces import by_rows

ROW_LEVELS = 127
ZERO = 128
# Rows and channels smaller than this are rounded to multiples of it: its reciprocal is still finite.
SMALLEST_STEP = 1e-30
# A float's bits without its sign, read as an integer, are in the order of its size; NaN is the largest.
_BITS = {
    torch.float32: (torch.int32, 0x7FFFFFFF),
    torch.bfloat16: (torch.int16, 0x7FFF),
    torch.float16: (torch.int16, 0x7FFF),
}


class Rows(NamedTuple):
    """Rounded rows: x is about (values - 128) * step.

    Attributes:
        values: (M, K) uint8, between 1 and 255.
        step: (M, 1) float32; for rows in bf16 rounded to bf16, so that outputs in bf16 can be multiplied by it without
            a detour. 0 for a row of zeros; NaN or infinite where the row holds such a value, so that the product shows
            it.
    """

    values: torch.Tensor
    step: torch.Tensor


def quantize_rows(x: torch.Tensor) -> Rows:
    """Round the rows of x (M, K), any float dtype, to multiples of their own step, max|x| / 127.

    The error of an element is at most half a step, plus 2^-16 step of float32 arithmetic:
    a step rounded down to bf16 makes the largest element 127.25 steps long, still nearest to 127.
    """
    if x.numel() == 0:
        return Rows(torch.empty_like(x, dtype=torch.uint8), x.new_zeros((len(x), 1), dtype=torch.float32))
    compiling = torch.compiler.is_compiling()
    # In float32 there: inductor (torch 2.13) writes C++ that does not compile for two reductions of bf16 in one loop.
    largest = x.float().abs().amax(-1, keepdim=True) if compiling else _largest(x).float()
    step = (largest / ROW_LEVELS).clamp(min=SMALLEST_STEP)
    if x.dtype == torch.bfloat16:
        step = step.to(x.dtype).float()
    inverse = step.reciprocal()
    step = step * (largest != 0)  # 0 for a row of zeros, so that whatever the product leaves there vanishes
    if compiling:
        return Rows((torch.round(x * inverse) + ZERO).to(torch.uint8), step)
    signed = by_rows(round_to_int8, (x, inverse), x.shape[1], torch.int8, x.device)
    # Adding 128 by flipping the highest bit: torch converts floats to int8 six times faster than to uint8 on a CPU.
    return Rows(signed.view(torch.uint8).bitwise_xor_(ZERO), step)


def _largest(x: torch.Tensor) -> torch.Tensor:
    """max|x| of each row (M, 1): torch reduces integers several times faster than bf16."""
    if x.dtype not in _BITS:
        return x.abs().amax(-1, keepdim=True)
    integer, magnitude = _BITS[x.dtype]
    return (x.view(integer) & magnitude).amax(-1, keepdim=True).view(x.dtype)


def round_to_int8(x: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Rows x (M, K) in units of their step: (M, K) int8.

    Args:
        inverse: (M, 1) float32, one over the steps.
    """
    # Copied first: a product of two dtypes is computed element by element.
    return x.to(torch.float32, copy=True).mul_(inverse).round_().to(torch.int8)


def quantize_weight(weight: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a weight (N, K) per output channel.

    Args:
        levels: largest magnitude, 127 or less.

    Returns:
        (N, K) int8 and the steps (N,) float32.

    Raises:
        StackError: the weight holds NaN or infinity.
    """
    weight = weight.detach().float()
    step = (weight.abs().amax(1) / levels).clamp(min=SMALLEST_STEP)
    if not bool(step.isfinite().all()):
        raise StackError(
            "expected finite weights to quantize, got NaN or infinity: check the checkpoint or the adapter"
        )
    return (weight / step[:, None]).round_().to(torch.int8), step
