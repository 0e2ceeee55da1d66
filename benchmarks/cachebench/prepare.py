"""What rows need before they run: calibrated schedules, fitted gates and maps, searched steps of the control
and of BudCache."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from placement import Times, place
from rich.progress import Progress

from stack import Stack
from stack.caching.cache import FILES, Cache
from stack.caching.learned import Learned
from stack.caching.methods import PRESETS
from stack.caching.sites.fastcache import FastCacheSite
from stack.core.errors import StackError
from stack.measure.multistep import multistep_of

from .bench import FIT_SEED, HELD_SEED, Bench, pictures
from .budcache import Steps, anneal
from .quality import mean_likeness
from .record import Record
from .rows import Row

BUDGET = 120.0  # seconds of a calibration on one core; its users are promised a minute on the machine's two


def tuples(value: Any) -> Any:
    """Lists as tuples, as options of a cache are."""
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value


def options_of(cache: Cache) -> dict[str, Any]:
    """What sets a cache apart from its preset, those options aside that files hold."""
    own = cache.policy.differing(PRESETS[cache.method])
    return {name: value for name, value in own.items() if name not in FILES}


def kept_file(bench: Bench, what: str) -> Path:
    """Where something fitted for this protocol is kept: beside other temporary files, its folder made."""
    key = hashlib.sha256(json.dumps([bench.protocol(), str(bench.weights), what]).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / "ditstack-bench" / f"{what.split(',')[0]}-{key}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _cache_of(stack: Stack) -> Cache:
    return next(p for p in stack.passes if isinstance(p, Cache))


def calibrated(bench: Bench, record: Record, full: int, method: str = "svd") -> dict[str, Any]:
    """Options of a calibrated cache at a number of full steps."""

    def compute() -> dict[str, Any]:
        search, held_out = bench.fitting()
        stack = Stack(bench.pipe, steps=bench.steps).cache(method)
        try:
            result = stack.calibrate(
                search, held_out, full_steps=full, seed=FIT_SEED, trials=bench.trials, budget=BUDGET
            )
        finally:
            stack.undo()
        cache = _cache_of(stack)
        if isinstance(cache.policy.learned, Learned):
            cache.policy.learned.save(learned)
        return {
            "options": options_of(cache), "trials": result.trials, "told": str(result),
            "learned": cache.policy.learned is not None,
        }  # fmt: skip

    learned = kept_file(bench, f"learned, {method}, {full}")
    found = record.remember(f"{method} calibrated, {full}", compute)
    options = {name: tuples(value) for name, value in found["options"].items()}
    if not found["learned"]:
        return options
    if not learned.is_file():
        raise StackError(f"what was learnt for {method} calibrated, {full} is gone: expected {learned}, try --fresh")
    return {**options, "learned": str(learned)}


def gate_options(bench: Bench, record: Record, method: str) -> dict[str, Any]:
    """The measured numbers that a preset's gate needs; nothing for most."""
    gate = PRESETS[method].gate
    if gate is None or not gate.fitted_by:
        return {}

    def compute() -> dict[str, Any]:
        stack = Stack(bench.pipe, steps=bench.steps).cache(method)
        return options_of(_cache_of(stack.fit_gate(bench.fitting()[0], seed=FIT_SEED)))

    found = record.remember(f"gate of {method}", compute)
    return {name: tuples(value) for name, value in found.items() if name != "threshold"}


def fitted(bench: Bench, record: Record, method: str) -> dict[str, Any]:
    """Whatever a preset needs that is measured on the model: a gate's numbers, FastCache's maps."""
    site = PRESETS[method].site
    maps = {"maps": str(fitted_maps(bench))} if isinstance(site, FastCacheSite) and site.needs_maps else {}
    return gate_options(bench, record, method) | maps


def fitted_maps(bench: Bench) -> Path:
    """A file with FastCache's maps, kept beside other temporary files and fitted where it is missing."""
    path = kept_file(bench, "maps")
    if not path.is_file():
        stack = Stack(bench.pipe, steps=bench.steps).cache("fastcache-published-gate")
        stack.fit_maps(bench.fit_texts, seed=FIT_SEED, save=path)
    return path


def searched(bench: Bench, record: Record, count: int, trials: int) -> Times:
    """Times of the second-order control, searched as a calibration searches: same prompts, same number of batches."""

    def compute() -> dict[str, Any]:
        texts, held_out = bench.fitting()
        target = pictures(bench.pipe, texts, bench.steps, FIT_SEED)

        def score(times: Times) -> float:
            with _walking(bench, times):
                return mean_likeness(pictures(bench.pipe, texts, count, FIT_SEED), target)

        with Progress(transient=True) as bar:
            task = bar.add_task(f"steps of the control, {count}", total=trials)
            found = place(score, count, trials, lambda times, value: bar.advance(task))
        away = pictures(bench.pipe, held_out, bench.steps, HELD_SEED)
        with _walking(bench, found.best):
            held = mean_likeness(pictures(bench.pipe, held_out, count, HELD_SEED), away)
        return {
            "times": found.best, "psnr": found.score, "uniform_psnr": found.trials[0][1], "held_out_psnr": held,
            "trials": len(found.trials),
        }  # fmt: skip

    return tuples(record.remember(f"control, {count}", compute)["times"])


def budgeted(bench: Bench, record: Record, row: Callable[[Steps], Row], name: str, full: int) -> Steps:
    """Full steps as BudCache searches them, with any cache under them: same prompts, same number of batches.

    Args:
        row: the cache, by its full steps.
    """

    def compute() -> dict[str, Any]:
        texts = bench.fitting()[0]
        target = pictures(bench.pipe, texts, bench.steps, FIT_SEED)
        with Progress(transient=True) as bar:
            task = bar.add_task(f"{name}: search", total=bench.trials)

            def score(chosen: Steps) -> float:
                with row(chosen).using() as live:
                    found = mean_likeness(pictures(live.run, texts, bench.steps, FIT_SEED), target)
                bar.advance(task)
                return found

            best, value = anneal(score, full, bench.steps, bench.trials)
        return {"full_steps": best, "psnr": value}

    return tuples(record.remember(name, compute)["full_steps"])


@contextmanager
def _walking(bench: Bench, times: Times) -> Iterator[None]:
    own = bench.pipe.scheduler
    bench.pipe.scheduler = multistep_of(own, times)
    try:
        yield
    finally:
        bench.pipe.scheduler = own


def or_empty(compute: Callable[[], list[float]]) -> list[float]:
    """What a rival measures about a model, or nothing where it does not work on it."""
    try:
        return compute()
    except (AttributeError, ValueError, TypeError, StopIteration, RuntimeError):
        return []
