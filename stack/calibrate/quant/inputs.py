"""What linears are given during recorded calls: second moments to round by, and some rows to judge on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ...quant.rounding.calibrated import Seen
from .recording import Recorded

ROWS = 64  # per call and linear, to judge on


def held_out(batch: int) -> tuple[list[int], list[int]]:
    """Samples to round by, and others to judge on: every fourth. Fewer than four samples have to serve for both."""
    if batch < 4:
        return list(range(batch)), list(range(batch))
    return [i for i in range(batch) if i % 4 != 3], [i for i in range(batch) if i % 4 == 3]


@dataclass
class Inputs:
    """Of one linear, summed up call by call.

    Attributes:
        rows: (ROWS or fewer, K) per call, of samples that the sums leave out.
    """

    rows: list[torch.Tensor] = field(default_factory=list)
    _count: int = 0
    _sums: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def add(self, x: torch.Tensor) -> None:
        """One call's input (B, ..., K)."""
        fit, judge = held_out(len(x))
        used, kept = (x[part].reshape(-1, x.shape[-1]) for part in (fit, judge))
        self.rows.append(kept[:: max(1, len(kept) // ROWS)][:ROWS].clone())
        used = used.float()
        moment, total, peak = used.T @ used, used.sum(0), used.abs().amax(0)
        if self._sums is not None:
            moment, total, peak = self._sums[0].add_(moment), self._sums[1] + total, torch.maximum(self._sums[2], peak)
        self._sums = moment, total, peak
        self._count += len(used)

    def seen(self) -> Seen:
        """Their statistics."""
        assert self._sums is not None, "no call reached this linear"
        moment, total, peak = self._sums
        return Seen(moment / self._count, total / self._count, peak)


@contextmanager
def _listening(linears: Mapping[str, nn.Module]) -> Iterator[dict[str, Inputs]]:
    found = {path: Inputs() for path in linears}

    def listener(path: str) -> Any:
        return lambda module, args: found[path].add(args[0].detach())

    handles = [linear.register_forward_pre_hook(listener(path)) for path, linear in linears.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def inputs_of(denoiser: nn.Module, paths: Sequence[str], calls: Sequence[Recorded]) -> dict[str, Inputs]:
    """What these linears are given in the recorded calls."""
    with _listening({path: denoiser.get_submodule(path) for path in paths}) as found:
        for call in calls:
            call.run(denoiser)
    return found


def in_portions(linears: Mapping[str, nn.Linear], budget: int) -> Iterator[list[str]]:
    """Paths in portions whose moments take at most `budget` bytes together; one of its own where one is larger."""
    portion: list[str] = []
    size = 0
    for path, linear in linears.items():
        own = 4 * linear.in_features**2
        if portion and size + own > budget:
            yield portion
            portion, size = [], 0
        portion.append(path)
        size += own
    if portion:
        yield portion
