"""One row of a whole model: put on, warmed up, timed, looked at, taken off."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from stack import Stack
from stack.runtime.report import StepRecord

from .attention import KERNELS
from .journal import Line
from .model import Flux
from .timing import host_times, several, timed

WARM_UPS = 2  # the first compiles; the second shows whether anything is compiled twice
SAME_STEPS = 3  # of a warm-up where all steps are alike
ENOUGH = 8.0  # seconds of measured requests
LONG = 28  # a request of so many steps is measured twice at least
Put = Callable[[Any, int], Callable[[], None]]


@dataclass(frozen=True)
class Whole:
    """A way to run the model.

    Attributes:
        seconds: that it wants on a GPU, compilation included.
        build: adds passes to a stack; None is the pipeline without a stack.
        steps: of a request.
        compiled: blocks are compiled: by the stack, or without one as diffusers does it.
        attention: who computes dense attention, a key of `gpu.attention.KERNELS`.
        rival: puts another library's cache on the pipeline for so many steps; returns what takes it off.
        full: steps that the rival computes in full.
        base: "eager" or "compiled" where other rows are held against it.
        late: see `gpu.runner.Row`.
    """

    name: str
    seconds: float
    build: Callable[[Stack], Stack] | None = None
    steps: int = 50
    compiled: bool = False
    attention: str = ""
    rival: Put | None = None
    full: Callable[[int], int] | None = None
    base: str = ""
    late: bool = False


def measure(whole: Whole, flux: Flux, size: int) -> Line:
    """Times, steps and memory of a row; the model is made anew after whatever leaves something on it."""
    steps = flux.setting.either(whole.steps, min(whole.steps, 12))
    try:
        with ExitStack() as put:
            run, stack, put_seconds = _put(whole, flux, steps, put)
            return {"size": size, "put_seconds": put_seconds, **_measured(whole, flux, run, stack, size, steps)}
    except BaseException:
        flux.drop()
        raise
    finally:
        # Blocks compiled in place stay compiled.
        if whole.build is None and (whole.compiled or whole.rival):
            flux.drop()


def _put(whole: Whole, flux: Flux, steps: int, put: ExitStack) -> tuple[Callable[..., Any], Stack | None, float]:
    """What generates, its stack if it is one, and the seconds it took to put it on."""
    pipe, compiled = flux.pipe, whole.compiled and flux.setting.compiled
    started = time.perf_counter()
    put.callback(KERNELS[whole.attention](pipe.transformer))
    if whole.build is None:
        if compiled:
            pipe.transformer.compile_repeated_blocks()
        if whole.rival:
            put.callback(whole.rival(pipe, steps))
        return pipe, None, time.perf_counter() - started
    stack = whole.build(Stack(pipe, steps=steps))
    # "off": the plan would compile rounded activations by itself on a GPU.
    put.enter_context(stack.compile("default" if compiled else "off"))
    return stack, stack, time.perf_counter() - started


def _measured(whole: Whole, flux: Flux, run: Callable[..., Any], stack: Stack | None, size: int, steps: int) -> Line:
    device, on_gpu = flux.setting.device, flux.setting.on_gpu
    alike = whole.rival is None and (stack is None or not any(p.stage == "cache" for p in stack.passes))
    short = min(SAME_STEPS, steps) if alike else steps

    given = {count: flux.request(size, count) for count in (short, steps)}

    def request(count: int) -> torch.Tensor:
        return run(generator=torch.Generator().manual_seed(0), **given[count])[0]

    warm_up = sum(timed(lambda: request(short), device).seconds for _ in range(WARM_UPS))
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    enough = flux.setting.either(ENOUGH, 0.0)
    done = several(lambda: request(steps), device, least=2 if steps >= LONG and enough else 1, most=5, enough=enough)
    peak = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
    records = _records(stack)
    with host_times(flux.pipe.transformer) as host:
        request(short)
    seconds = median(each.seconds for each in done)
    return {
        "steps": steps,
        "full": sum(record.kind == "full" for record in records) if stack else (whole.full or int)(steps),
        "seconds": seconds,
        "step_ms": 1e3 * seconds / steps,
        "seconds_all": [each.seconds for each in done],
        "host_seconds": median(each.host_seconds for each in done),
        "warm_up_seconds": warm_up,
        **_by_kind("step", records, [record.seconds for record in records]),
        **_by_kind("host", _records(stack), [] if whole.rival else host),
        "peak_gb": peak,
        "base": whole.base,
        "finite": bool(done[-1].result.isfinite().all()),
    }


def _records(stack: Stack | None) -> list[StepRecord]:
    """Steps of the last request."""
    return stack.report().steps if stack else []


def _by_kind(what: str, records: list[StepRecord], seconds: list[float]) -> Line:
    """Median milliseconds of full and of cached steps; every step of a pipeline without any cache is full."""
    kinds = [r.kind for r in records] or ["full"] * len(seconds)
    found: Line = {}
    for kind in ("full", "cached"):
        own = [1e3 * each for each, of in zip(seconds, kinds, strict=True) if of == kind]
        found[f"{what}_{kind}_ms"] = median(own) if own else None
    return found
