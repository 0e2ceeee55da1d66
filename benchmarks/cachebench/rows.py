"""The rows of the cache benchmark: how each is put on a pipeline and taken off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from stack import Stack
from stack.caching.methods import PRESETS
from stack.measure.multistep import multistep_of

from .bench import WARMUP, Bench, Run, interval_for

CONTROL_SHARES = (0.12, 0.14, 0.16, 0.18, 0.2, 0.22, 0.24, 0.28, 0.34, 0.4, 0.5, 0.64, 0.8)
OURS = ("svd", "predictor-corrector")  # measured calibrated as well
FP32 = "base in fp32"
FASTCACHE_FACTORS = (0.5, 1.0, 2.0, 4.0)  # of the preset's threshold


@dataclass
class Live:
    """A row on a pipeline: what generates, and the module whose calls are counted."""

    run: Run
    denoiser: nn.Module


@dataclass
class Row:
    """One way to generate.

    Attributes:
        group: "base", "ours", "preset", "cache-dit", "diffusers", "euler", "second order", "searched" or "rounding".
        family: what it is a setting of.
        settings: everything its figures depend on, for the record.
        using: a context in which the row generates.
    """

    name: str
    group: str
    family: str
    settings: dict[str, Any]
    using: Callable[[], AbstractContextManager[Live]] = field(repr=False)


def preset(bench: Bench, name: str, method: str, group: str = "preset", family: str = "", **options: Any) -> Row:
    """A row of our own mechanism. Fitted `maps`, given as a file's path, are told as such only."""

    @contextmanager
    def using() -> Iterator[Live]:
        stack = Stack(bench.pipe, steps=bench.steps).cache(method, **options)
        with stack:
            yield Live(stack, bench.pipe.transformer)

    told = {key: value if key != "maps" else "fitted" for key, value in options.items()}
    return Row(name, group, family or method, {"method": method, **told}, using)


def rival(
    bench: Bench,
    name: str,
    group: str,
    family: str,
    put: Callable[[Any], None],
    take: Callable[[Any], None],
    settings: dict[str, Any],
) -> Row:
    """Somebody else's cache, on a new pipeline each time, since some leave traces."""

    @contextmanager
    def using() -> Iterator[Live]:
        own = bench.load()
        put(own)
        try:
            yield Live(own, own.transformer)
        finally:
            take(own)

    return Row(name, group, family, settings, using)


def fewer(bench: Bench, steps: int, group: str, times: Sequence[float] = ()) -> Row:
    """The same model with fewer steps: its own scheduler, or the second-order one, on uniform or searched times."""
    name = "base" if group == "base" else f"{steps} steps, {group}"

    @contextmanager
    def using() -> Iterator[Live]:
        pipe = bench.pipe
        own = pipe.scheduler
        if group in ("second order", "searched"):
            pipe.scheduler = multistep_of(own, times)
        try:
            yield Live(
                lambda *args, **kwargs: pipe(*args, **{**kwargs, "num_inference_steps": steps}), pipe.transformer
            )
        finally:
            pipe.scheduler = own

    return Row(name, group, group, {"steps": steps, "times": list(times)}, using)


def rounding(bench: Bench, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """The base in fp32: what rounding does to its pictures, and so the PSNR above which rows cannot be told apart."""

    @contextmanager
    def using() -> Iterator[Live]:
        own = bench.load(torch.float32)
        yield Live(own, own.transformer)

    if wanted(FP32) and bench.pipe.transformer.dtype != torch.float32:
        yield Row(FP32, "rounding", FP32, {"dtype": "float32"}, using)


def scheduled(bench: Bench, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """Every preset with a schedule at every count, and those with a pace of their own as published."""
    for name, policy in PRESETS.items():
        if not policy.scheduled:
            continue
        if (policy.schedule.interval, policy.schedule.warmup) != (7, 3) and wanted(name):
            yield preset(bench, name, name)
        for full in bench.counts:
            if wanted(f"{name}, {full}"):
                yield preset(bench, f"{name}, {full}", name, interval=interval_for(full, bench.steps), warmup=WARMUP)
    # What the plan advises where nobody calibrates (rule even-steps).
    for full in bench.counts:
        if wanted(f"svd corrected, {full}"):
            options = {
                "interval": interval_for(full, bench.steps),
                "warmup": WARMUP,
                "schedule_power": 2.0,
                "corrected": True,
            }
            yield preset(bench, f"svd corrected, {full}", "svd", family="svd corrected", **options)


def control_steps(steps: int) -> list[int]:
    """Numbers of steps whose times cover those of any cache worth having."""
    return sorted({max(2, round(share * steps)) for share in CONTROL_SHARES})


def controls(bench: Bench, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """Fewer steps, uniform: the model's own scheduler and a second-order one."""
    solvers = ["euler"] + ["second order"] * (multistep_of(bench.pipe.scheduler) is not None)
    for group in solvers:
        for steps in control_steps(bench.steps):
            if wanted(f"{steps} steps, {group}"):
                yield fewer(bench, steps, group)
