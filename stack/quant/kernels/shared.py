"""Rows rounded once for several linears that read the same tensor: q, k, v, and the MLP of a parallel block."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .rows import Rows, quantize_rows


@dataclass(frozen=True)
class _SharedRows:
    source: torch.Tensor
    version: int
    rows: Rows
    served: set[int] = field(default_factory=set)


class SharedRows:
    """The last input of a group of linears, rounded.

    Why reuse is never stale: rows are reused only for the very same tensor object (it is held, so that no other can
    take its identity), with no write to it since (its version), and once per member, so that a second pass over the
    block starts anew. When every member has been served the entry is dropped. After an exception halfway it stays
    until the next call, which fails one of the three tests, or until `clear()`. A call works on the entry it read, and
    its rows are never written to, so two threads at worst round twice.

    Inference tensors count no versions and are rounded for every member. In a compiled graph versions are unknown: it
    shares by identity alone, so members must belong to a block that does not write to its own input between them.
    """

    def __init__(self, members: int) -> None:
        self._members = members
        self._entry: _SharedRows | None = None

    def rows(self, member: int, x: torch.Tensor) -> Rows:
        """Rows of x (..., K), flattened to (M, K), for one of the group's linears."""
        if torch.compiler.is_compiling():
            return self._traced(member, x)
        if self._members == 1 or x.is_inference():
            return quantize_rows(x.reshape(-1, x.shape[-1]))
        entry = self._entry
        if entry is None or entry.source is not x or entry.version != x._version or member in entry.served:
            entry = _SharedRows(x, x._version, quantize_rows(x.detach().reshape(-1, x.shape[-1])))
            self._entry = entry
        entry.served.add(member)
        if len(entry.served) == self._members:
            self._entry = None
        return entry.rows

    def _traced(self, member: int, x: torch.Tensor) -> Rows:
        """The same while a compiler traces, which does not merge equal roundings on its own."""
        entry = self._entry
        if entry is None or entry.source is not x or member in entry.served:
            entry = _SharedRows(x, 0, quantize_rows(x.reshape(-1, x.shape[-1])))
        entry.served.add(member)
        self._entry = None if len(entry.served) == self._members else entry
        return entry.rows

    def clear(self) -> None:
        """Forget the input."""
        self._entry = None

    @property
    def holds(self) -> bool:
        """Whether an input is kept at the moment."""
        return self._entry is not None
