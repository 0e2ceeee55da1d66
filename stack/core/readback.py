"""Numbers and times that go to an accelerator and come back without anybody waiting for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch


def reads_are_free(device: torch.device) -> bool:
    """Whether a number can be read from a tensor without waiting for queued work.

    Every decision that depends on it asks here, so that tests can have the accelerator's path on a CPU.
    """
    return device.type == "cpu"


def sent(parts: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """1-d tensors of one dtype in host memory, to a device: in one transfer that nobody waits for."""
    if not parts:
        return []
    lengths = [len(part) for part in parts]
    # From memory that is not pinned the copy waits.
    whole = torch.empty(sum(lengths), dtype=parts[0].dtype, pin_memory=device.type == "cuda")
    return list(torch.cat(list(parts), out=whole).to(device, non_blocking=True).split(lengths))


class Readback:
    """A few numbers on their way to the host.

    On a CPU they are there at once. On an accelerator they are copied to pinned memory without blocking, and an event
    signals their arrival: reading a tensor directly would wait for everything that was launched before it.

    Args:
        numbers: any shape; a copy is made on an accelerator, so that it may be written to afterwards.
    """

    def __init__(self, numbers: torch.Tensor):
        self._event: Any = None
        self._host = numbers
        if numbers.device.type != "cpu":
            self._host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._host.copy_(numbers, non_blocking=True)
            self._event = torch.Event(numbers.device)
            self._event.record()

    @property
    def shape(self) -> torch.Size:
        """Of the numbers."""
        return self._host.shape

    @property
    def ready(self) -> bool:
        """Whether they have arrived. Does not wait."""
        return self._event is None or self._event.query()

    def read(self) -> list[Any]:
        """The numbers, as nested lists. Waits for them where they have not arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.tolist()


class Stopwatch:
    """Times one piece of work on a device, started when it is made.

    Attributes:
        host_seconds: what the host spent on it: all of it on a CPU, launching it on an accelerator.
    """

    def __init__(self, device: torch.device):
        self._events = tuple(torch.Event(device, enable_timing=True) for _ in range(2)) if device.type != "cpu" else ()
        self.host_seconds = 0.0
        if self._events:
            self._events[0].record()
        self._started = time.perf_counter()

    def stop(self) -> None:
        """The work has been launched."""
        self.host_seconds = time.perf_counter() - self._started
        if self._events:
            self._events[1].record()

    @property
    def seconds(self) -> float:
        """From its first to its last operation on the device. Waits until the last one has run."""
        if not self._events:
            return self.host_seconds
        started, stopped = self._events
        stopped.synchronize()
        return started.elapsed_time(stopped) / 1e3
