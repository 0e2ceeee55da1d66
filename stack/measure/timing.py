"""Timing: a stopwatch that waits for the device, medians, and the order in which rows take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")

FEWEST_STEPS = 2


def median(values: Sequence[float]) -> float | None:
    """The median, or None of nothing."""
    return statistics.median(values) if values else None


def ratio(base: float | None, other: float | None) -> float | None:
    """base / other: how many times faster. None where one is missing or no time was measured."""
    return base / other if base and other else None


def timed(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """The result of `work` and its wall time in seconds. On CUDA the queue is drained before and after."""
    drain(device)
    started = time.perf_counter()
    result = work()
    drain(device)
    return result, time.perf_counter() - started


def drain(device: torch.device) -> None:
    """Wait for all that was queued on a CUDA device; elsewhere nothing is."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def steps_that_fit(budget_seconds: float, base_seconds: float, steps: int) -> int:
    """Steps of the base run that fit in the budget, rounded down; at least 2, at most `steps`.

    A denoising run is taken to cost the same per step; text encoder and decoder are thereby counted in favour of the
    control, which is what a control should have.
    """
    return max(FEWEST_STEPS, min(steps, int(budget_seconds / base_seconds * steps + 1e-9)))


class RoundRobin:
    """Rows take turns, so that a slow minute of the machine hits all of them alike.

    Iterating yields (round, row). A row added with `add` while a round is running is visited at the end of that round,
    so it gets as many turns as the others.

    Example:
        >>> list(RoundRobin(["a", "b"], rounds=2))
        [(0, 'a'), (0, 'b'), (1, 'a'), (1, 'b')]
    """

    def __init__(self, rows: Sequence[str], rounds: int):
        self.rounds = rounds
        self._rows = list(rows)

    @property
    def rows(self) -> tuple[str, ...]:
        """All rows that still take turns, in order."""
        return tuple(self._rows)

    def add(self, row: str) -> None:
        """One more row, behind the others."""
        self._rows.append(row)

    def drop(self, row: str) -> None:
        """No more turns for this row."""
        self._rows.remove(row)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        for number in range(self.rounds):
            done: set[str] = set()
            while waiting := [row for row in self._rows if row not in done]:
                done.add(waiting[0])
                yield number, waiting[0]
