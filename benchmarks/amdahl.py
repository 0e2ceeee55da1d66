"""What faster linears can give at most: their share of the time, and how much faster the bare int8 product is.

Feed both to `bounds.best_speedup([share], [rate])` and print it beside every measured speedup.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import torch
from torch import nn

from stack.core.errors import StackError
from stack.core.facts import machine_of
from stack.quant.kernels.product import kernel_for, pack, product
from stack.quant.kernels.rows import quantize_rows, quantize_weight

Shape = tuple[int, int, int]
"""Rows M, in features K, out features N of one product."""


class _Stopwatch:
    """Seconds between starts and stops: CUDA events on a GPU, which do not stall it; the wall clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spans: list[tuple[Any, Any]] = []
        self._start: Any = None

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def start(self) -> None:
        self._start = self._now()

    def stop(self) -> None:
        self._spans.append((self._start, self._now()))

    def seconds(self) -> float:
        """Sum of all spans; starts anew."""
        if self._cuda:
            torch.cuda.synchronize()
        total = sum(a.elapsed_time(b) / 1e3 if self._cuda else b - a for a, b in self._spans)
        self._spans.clear()
        return total


def linear_share(denoiser: nn.Module, call: Callable[[], object], linears: Iterable[str], repeats: int = 5) -> float:
    """Share of a denoiser call's time spent inside some of its linears, in [0, 1]. Median of `repeats` calls.

    Args:
        call: runs the denoiser once.
        linears: paths of the linears, as they are now (measure before they are converted).

    Raises:
        StackError: `linears` is empty.
    """
    modules = [denoiser.get_submodule(path) for path in linears]
    if not modules:
        raise StackError("expected the paths of some linears to time, got none")
    device = next(denoiser.parameters()).device
    inner, outer = _Stopwatch(device), _Stopwatch(device)
    handles = [m.register_forward_pre_hook(lambda *_: inner.start()) for m in modules]
    handles += [m.register_forward_hook(lambda *_: inner.stop()) for m in modules]
    shares = []
    try:
        with torch.no_grad():
            call()
            inner.seconds()
            for _ in range(repeats):
                outer.start()
                call()
                outer.stop()
                shares.append(inner.seconds() / outer.seconds())
    finally:
        for handle in handles:
            handle.remove()
    return median(shares)


def linear_shapes(denoiser: nn.Module, call: Callable[[], object], linears: Iterable[str]) -> list[Shape]:
    """The product each linear computes during one denoiser call, in the order they run."""
    shapes: list[Shape] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        rows, inner = args[0].numel() // args[0].shape[-1], args[0].shape[-1]
        shapes.append((rows, inner, output.shape[-1]))

    handles = [denoiser.get_submodule(path).register_forward_hook(note) for path in linears]
    try:
        with torch.no_grad():
            call()
    finally:
        for handle in handles:
            handle.remove()
    return shapes


@torch.no_grad()
def gemm_rate(
    shapes: Iterable[Shape], dtype: torch.dtype, device: torch.device | str = "cpu", repeats: int = 20
) -> float:
    """How many times faster the bare int8 product is than the float linear, over the same list of shapes.

    Operands are rounded beforehand and rows are not scaled afterwards: the limit of what any fusion could reach.

    Args:
        shapes: one per product; a shape counts as often as it occurs.
        dtype: of the float linear.
        repeats: interleaved runs per shape; their medians are summed.

    Raises:
        StackError: `shapes` is empty.
    """
    counts = Counter(shapes)
    if not counts:
        raise StackError("expected some shapes to time, got none")
    device = torch.device(device)
    totals = [0.0, 0.0]
    for shape, count in counts.items():
        for i, seconds in enumerate(_time_interleaved(_contestants(shape, dtype, device), device, repeats)):
            totals[i] += count * seconds
    return totals[0] / totals[1]


def _contestants(shape: Shape, dtype: torch.dtype, device: torch.device) -> list[Callable[[], torch.Tensor]]:
    """The float linear and the int8 product of a shape, on fixed random operands."""
    rows, inner, outer = shape
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(rows, inner, device=device, generator=generator)
    weight = torch.randn(outer, inner, device=device, generator=generator)
    bias = torch.zeros(outer, device=device)
    kernel = kernel_for(machine_of(device))
    packed, values = pack(kernel, *quantize_weight(weight, kernel.weight_levels)), quantize_rows(x).values
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    return [lambda: torch.nn.functional.linear(x, weight, bias), lambda: product(values, packed)]


def _time_interleaved(contestants: list[Callable[[], torch.Tensor]], device: torch.device, repeats: int) -> list[float]:
    """Median seconds of each contestant, run in turn after a warm-up."""
    watch = _Stopwatch(device)
    times: list[list[float]] = [[] for _ in contestants]
    for repeat in range(repeats + 2):
        for i, contestant in enumerate(contestants):
            watch.start()
            contestant()
            watch.stop()
            seconds = watch.seconds()
            if repeat >= 2:
                times[i].append(seconds)
    return [median(each) for each in times]
