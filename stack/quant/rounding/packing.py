"""Codes of 2 to 8 bits as bytes. A code is cut into fields of 4, 2 and 1 bits, so that any width packs without loss:
5 bits are a field of 4 and one of 1."""

from __future__ import annotations

import torch

_WIDTHS = (8, 4, 2, 1)


def fields(bits: int) -> tuple[int, ...]:
    """Widths of the fields of a code, widest first; they add up to `bits`."""
    return tuple(width for width in _WIDTHS if bits & width)


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` codes take."""
    return sum(-(-count * width // 8) for width in fields(bits))


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes (any shape, uint8, below 2^bits) as one row of bytes."""
    flat, parts, shift = codes.flatten().int(), [], 0
    for width in fields(bits):
        field = (flat >> shift) & ((1 << width) - 1)
        each = 8 // width
        field = torch.nn.functional.pad(field, (0, -len(field) % each)).view(-1, each)
        places = torch.arange(each, device=codes.device, dtype=torch.int32) * width
        parts.append((field << places).sum(1).to(torch.uint8))
        shift += width
    return torch.cat(parts)


def unpack_codes(data: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The inverse of `pack_codes`: (count,) uint8."""
    codes, start, shift = torch.zeros(count, dtype=torch.uint8, device=data.device), 0, 0
    for width in fields(bits):
        length, each = -(-count * width // 8), 8 // width
        places = torch.arange(each, device=data.device, dtype=torch.uint8) * width
        field = (data[start : start + length, None] >> places) & ((1 << width) - 1)
        codes |= field.flatten()[:count] << shift
        start, shift = start + length, shift + width
    return codes
