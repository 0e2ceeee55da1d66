"""Times of requests and of single calls: the device's by CUDA events, the host's without waiting for the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

Work = Callable[[], Any]


@dataclass(frozen=True)
class Timed:
    """One request.

    Attributes:
        seconds: from its first kernel to its last, gaps included; wall time on a CPU.
        host_seconds: until the call returned, with the device still computing.
    """

    result: Any
    seconds: float
    host_seconds: float


def timed(work: Work, device: torch.device) -> Timed:
    """Run once. On CUDA the queue is empty before, and drained after the clock of the host has been read."""
    if device.type != "cuda":
        started = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - started
        return Timed(result, seconds, seconds)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    started = time.perf_counter()
    begin.record()
    result = work()
    end.record()
    host = time.perf_counter() - started
    torch.cuda.synchronize()
    return Timed(result, begin.elapsed_time(end) / 1e3, host)


def several(work: Work, device: torch.device, least: int, most: int, enough: float) -> list[Timed]:
    """Requests one after the other: at least `least`, then on to `most` while they took under `enough` seconds."""
    found: list[Timed] = []
    while len(found) < least or (len(found) < most and sum(each.seconds for each in found) < enough):
        found.append(timed(work, device))
    return found


def call_ms(work: Work, device: torch.device, calls: int = 10, warm_up: int = 3) -> float:
    """Median milliseconds of a short call."""
    for _ in range(warm_up):
        work()
    if device.type != "cuda":
        return 1e3 * median(timed(work, device).seconds for _ in range(calls))
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
    torch.cuda.synchronize()
    # All calls are queued without waiting between them: launching a short one takes longer than computing it.
    for begin, end in events:
        begin.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return median(begin.elapsed_time(end) for begin, end in events)


@contextmanager
def host_times(denoiser: nn.Module) -> Iterator[list[float]]:
    """Seconds that the host spends in each denoiser call of the block, filled in call by call.

    The device's queue is drained before each call. Without that a cached step behind a full one would wait for room
    in the queue, and the device's time would be counted as the host's.
    """
    seconds: list[float] = []
    started: list[float] = []
    on_gpu = next(denoiser.parameters()).device.type == "cuda"

    def begin(*_: Any) -> None:
        if on_gpu:
            torch.cuda.synchronize()
        started.append(time.perf_counter())

    def end(*_: Any) -> None:
        seconds.append(time.perf_counter() - started.pop())

    handles = [denoiser.register_forward_pre_hook(begin), denoiser.register_forward_hook(end)]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()
