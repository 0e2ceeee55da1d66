"""Weights stored in 8 or 4 bits, and back. Stored bits are real: 4-bit values lie two in a byte."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..core.errors import StackError
from .kernels.pieces import by_rows
from .kernels.rows import SMALLEST_STEP
from .schemes import Scheme

E4M3_LARGEST = 448.0
# Quantiles of a Gaussian between -1 and 1 with an exact zero; QLoRA (arXiv 2305.14314), appendix E.
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A weight (N, K) as it is kept.

    Attributes:
        scheme: how to read it.
        values: (N, K) int8 or float8_e4m3fn; (N, ceil(K / group) * group / 2) uint8 where two share a byte, the earlier
            one in the low half.
        step: (N, groups) in the model's dtype: what one unit of `values` is worth.
        low: (N, groups): the weight of level 0, for evenly spaced 4-bit levels. Otherwise None: level 0 is weight 0.
        features: K.
    """

    scheme: Scheme
    values: torch.Tensor
    step: torch.Tensor
    low: torch.Tensor | None
    features: int

    def tensors(self) -> list[torch.Tensor]:
        """What it keeps in memory."""
        return [t for t in (self.values, self.step, self.low) if t is not None]


def store(weight: torch.Tensor, scheme: Scheme) -> Stored:
    """Round a weight (N, K) to a scheme's levels. Steps are kept in the weight's dtype and rounding sees them so.

    Raises:
        StackError: the weight holds NaN or infinity.
    """
    plain = weight.detach().float()
    if not bool(plain.isfinite().all()):
        raise StackError(
            "expected finite weights to quantize, got NaN or infinity: check the checkpoint or the adapter"
        )
    if scheme.weight_bits == 8:
        return _store_8_bits(plain, scheme, weight.dtype)
    return _store_4_bits(plain, scheme, weight.dtype)


def load(stored: Stored, dtype: torch.dtype, table: torch.Tensor | None = None) -> torch.Tensor:
    """The weight (N, K) that is left, in `dtype`.

    Args:
        table: `table_of` the weight, where it is at hand.
    """
    read = reader(stored, dtype, table)
    return by_rows(read, stored.tensors(), stored.features, dtype, stored.values.device)


def reader(stored: Stored, dtype: torch.dtype, table: torch.Tensor | None = None) -> Callable[..., torch.Tensor]:
    """What makes weights (M, K) in `dtype` of M output channels of a weight's `tensors()`."""
    scheme = stored.scheme
    if table is None:
        table = table_of(scheme, stored.step.dtype, stored.step.device)

    def read(values: torch.Tensor, step: torch.Tensor, low: torch.Tensor | None = None) -> torch.Tensor:
        rows, step = len(values), step.to(dtype)
        if scheme.weight_bits == 4:
            weight = _look_up(values, table, dtype).view(*step.shape, scheme.group) * step[..., None]
            if low is not None:
                weight = weight.add_(low[..., None].to(dtype))
            return weight.view(rows, -1)[:, : stored.features].contiguous()
        if scheme.kind == "float":
            return _look_up(values.view(torch.uint8), table, dtype).view(rows, -1).mul_(step)
        return values.to(dtype).mul_(step)

    return read


def _look_up(values: torch.Tensor, table: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """What each byte stands for, one row of the table (256, 1 or 2) each, flat: reading a table is up to 17 times
    faster than unpacking or converting (2 million weights, bf16)."""
    assert table is not None
    table = table.to(dtype)
    width = {(2, 1): torch.int16, (2, 2): torch.int32, (4, 1): torch.int32, (4, 2): torch.int64}
    words = table.view(width[table.element_size(), table.shape[1]]).view(-1)
    return torch.index_select(words, 0, values.view(-1).int()).view(table.dtype)


def table_of(scheme: Scheme, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
    """What each byte of a stored weight stands for, one constant for all linears; None where bytes are numbers."""
    if scheme.weight_bits == 4:
        return pairs_of(scheme.kind, dtype, device)
    return floats_of(dtype, device) if scheme.kind == "float" else None


@functools.cache
def pairs_of(kind: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(256, 2): the two 4-bit levels in each byte, the earlier one in its low half."""
    levels = NF4_LEVELS if kind == "nf4" else tuple(float(level) for level in range(16))
    return torch.tensor([[levels[b & 15], levels[b >> 4]] for b in range(256)], dtype=dtype, device=device)


@functools.cache
def floats_of(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(256, 1): the e4m3 number of each byte."""
    return torch.arange(256, dtype=torch.uint8, device=device).view(torch.float8_e4m3fn).float().to(dtype)[:, None]


def _smallest(dtype: torch.dtype) -> float:
    """A step that is more than 0 in `dtype`."""
    return max(SMALLEST_STEP, torch.finfo(dtype).tiny * 2**-8)


def _store_8_bits(plain: torch.Tensor, scheme: Scheme, dtype: torch.dtype) -> Stored:
    largest = 127.0 if scheme.kind == "int" else E4M3_LARGEST
    step = (plain.abs().amax(1, keepdim=True) / largest).clamp(min=_smallest(dtype)).to(dtype)
    scaled = (plain / step.float()).clamp(-largest, largest)
    values = scaled.round_().to(torch.int8) if scheme.kind == "int" else scaled.to(torch.float8_e4m3fn)
    return Stored(scheme, values, step, None, plain.shape[1])


def _store_4_bits(plain: torch.Tensor, scheme: Scheme, dtype: torch.dtype) -> Stored:
    features, group = plain.shape[1], scheme.group
    # The last weight repeated, not zeros: a group's range must not grow by its padding.
    tail = plain[:, -1:].expand(-1, -features % group)
    grouped = torch.cat([plain, tail], 1).view(len(plain), -1, group)
    if scheme.kind == "nf4":
        step = grouped.abs().amax(2).clamp(min=_smallest(dtype)).to(dtype)
        middles = torch.tensor(NF4_LEVELS).unfold(0, 2, 1).mean(1).to(plain.device)
        levels = torch.bucketize(grouped / step[..., None].float(), middles)
        return Stored(scheme, pack_levels(levels), step, None, features)
    low = grouped.amin(2).to(dtype)
    step = ((grouped.amax(2) - low.float()) / 15).clamp(min=_smallest(dtype)).to(dtype)
    levels = ((grouped - low[..., None].float()) / step[..., None].float()).round_().clamp_(0, 15)
    return Stored(scheme, pack_levels(levels), step, low, features)


def pack_levels(levels: torch.Tensor) -> torch.Tensor:
    """4-bit levels (N, any) as bytes, two in one; an even number per row."""
    flat = levels.to(torch.uint8).flatten(1)
    return flat[:, ::2] | flat[:, 1::2] << 4
