"""The rows of the cache benchmark: how each is put on a pipeline and taken off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from stack import Stack
from stack.caching.cache import FILES, Cache
from stack.caching.methods import PRESETS, is_reading
from stack.caching.policy import Policy
from stack.calibration.thresholds import loosened
from stack.measure.multistep import multistep_of

from .bench import WARMUP, Bench, Run, interval_for

# Numbers of steps of the controls, as shares of the base's: of 50, 5 to 25, and 4 to 12 where they are searched.
SHARES = {
    "euler": (0.1, 0.12, 0.14, 0.18, 0.24, 0.3, 0.4, 0.5),
    "second order": (0.12, 0.18, 0.24, 0.4),
    "searched": (0.08, 0.1, 0.12, 0.14, 0.18, 0.24),
}
OURS = ("svd",)  # measured calibrated as well
FP32 = "base in fp32"
SOLVER = "solver"
Wanted = Callable[[str], bool]
FACTORS = (0.5, 2.0)  # of a published gate's threshold, for points beside its own


@dataclass
class Live:
    """A row on a pipeline: what generates, and the module whose calls are counted."""

    run: Run
    denoiser: nn.Module


@dataclass
class Row:
    """One way to generate.

    Attributes:
        group: "base", "ours", "preset", "papers", "cache-dit", "diffusers", "solver", "euler", "second order",
            "searched" or "rounding".
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
    """A row of our own mechanism. What was fitted and is given as a file's path is told as such only."""

    @contextmanager
    def using() -> Iterator[Live]:
        stack = Stack(bench.pipe, steps=bench.steps).cache(method, **options)
        with stack:
            yield Live(stack, bench.pipe.transformer)

    told = {key: value if key not in FILES else "fitted" for key, value in options.items()}
    return Row(name, group, family or method, {"method": method, **told}, using)


def solvers(bench: Bench, wanted: Wanted) -> Iterator[Row]:
    """The solver of the stack, which places its steps itself, at the numbers of full steps of the caches."""
    for steps in bench.counts:
        if wanted(f"{SOLVER}, {steps}"):

            @contextmanager
            def using(steps: int = steps) -> Iterator[Live]:
                with Stack(bench.pipe, steps=bench.steps).solver(steps=steps) as stack:
                    yield Live(stack, bench.pipe.transformer)

            yield Row(f"{SOLVER}, {steps}", SOLVER, SOLVER, {"solver": steps}, using)


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


def rounding(bench: Bench, wanted: Wanted) -> Iterator[Row]:
    """The base in fp32: what rounding does to its pictures, and so the PSNR above which rows cannot be told apart."""

    @contextmanager
    def using() -> Iterator[Live]:
        own = bench.load(torch.float32)
        yield Live(own, own.transformer)

    if wanted(FP32) and bench.pipe.transformer.dtype != torch.float32:
        yield Row(FP32, "rounding", FP32, {"dtype": "float32"}, using)


def at_count(bench: Bench, full: int) -> dict[str, Any]:
    """Options of a cache with so many full steps."""
    return {"count": full}


def at_interval(bench: Bench, full: int) -> dict[str, Any]:
    """Options of a published schedule with about so many full steps."""
    return {"interval": interval_for(full, bench.steps), "warmup": WARMUP}


def looser(name: str, factor: float) -> dict[str, Any]:
    """Options of a preset with its threshold, or its bound on a draft's error, times a factor; {} if it has none."""
    cache = Cache(name)
    own = loosened(cache, factor).policy.differing(cache.policy)
    return {key: value for key, value in own.items() if key in ("threshold", "accept")}


def settings_of(bench: Bench, name: str, policy: Policy) -> dict[str, dict[str, Any]]:
    """Names of a preset's rows, and its options in each.

    With a schedule: at every count, a variant of another preset at the usual one only; or as published and at the
    interval of the usual count. What decides by itself: as shipped; a published one also tighter and looser.
    """
    if is_reading(name):
        if policy.scheduled:
            return {name: {}, f"{name}, {bench.usual}": at_interval(bench, bench.usual)}
        loose = {f"{name}, {factor:g} of its threshold": looser(name, factor) for factor in FACTORS}
        return {name: {}} | {row: options for row, options in loose.items() if options}
    if policy.scheduled:
        variant = any(name.startswith(f"{other}-") for other in PRESETS)
        return {f"{name}, {full}": at_count(bench, full) for full in ([bench.usual] if variant else bench.counts)}
    return {name: {}}


def preset_rows(bench: Bench, wanted: Wanted, fitted: Callable[[str], dict[str, Any]]) -> Iterator[Row]:
    """Every preset; one that is the same cache as another before it is measured once.

    Args:
        fitted: the measured numbers and maps that a preset needs, by its name.
    """
    same = twins()
    for name, policy in PRESETS.items():
        for row, options in settings_of(bench, name, policy).items():
            if name not in same and wanted(row):
                yield preset(bench, row, name, **options, **fitted(name))


def twins() -> dict[str, str]:
    """Presets that are the same cache as one before them, and that one's name."""
    names = list(PRESETS)
    first = {name: next(other for other in names if PRESETS[other] == PRESETS[name]) for name in names}
    return {name: other for name, other in first.items() if other != name}


def control_steps(bench: Bench, group: str) -> list[int]:
    """Numbers of steps of a control; none where the sampler has no second-order one."""
    if group != "euler" and multistep_of(bench.pipe.scheduler) is None:
        return []
    return sorted({max(2, round(share * bench.steps)) for share in SHARES[group]})


def controls(bench: Bench, wanted: Wanted) -> Iterator[Row]:
    """Fewer steps, uniform: the model's own scheduler and a second-order one."""
    for group in ("euler", "second order"):
        for steps in control_steps(bench, group):
            if wanted(f"{steps} steps, {group}"):
                yield fewer(bench, steps, group)
