"""The rows of the cache benchmark: how each is put on a pipeline and taken off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peers import Peer, cache_dit_peers, diffusers_gates, diffusers_peers

from stack import Stack
from stack.caching.policy import PRESETS
from stack.measure.multistep import multistep_of

STEPS = 50
CONTROL_STEPS = (6, 8, 9, 10, 11, 12, 14, 17, 20, 25, 32)
INTERVALS = {12: 5, 10: 6, 9: 7}  # with 3 warm-up steps: the published counts of full steps
# Presets with a gate, and what a threshold of the first-block cache is multiplied with for them.
GATED = {"first-block": 1.0, "dbcache": 1.0, "dbcache-taylor": 1.0, "teacache": 4.0, "magcache": 1.0}

Run = Callable[..., Any]
Load = Callable[[], Any]


@dataclass
class Row:
    """One way to generate.

    Attributes:
        group: "base", "ours", "preset", "peer", "euler" or "unipc".
        full: full steps asked for; 0 where a gate decides.
        using: a pipeline to a context in which the callable it gives generates this row's pictures.
        figures: what the row tells about its last run.
    """

    name: str
    group: str
    full: int
    using: Callable[[Any], AbstractContextManager[Run]]
    figures: dict[str, Any] = field(default_factory=dict)
    pictures: list[torch.Tensor] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def preset(name: str, method: str, full: int = 0, group: str = "preset", **options: Any) -> Row:
    """A row of our own mechanism."""

    @contextmanager
    def using(pipe: Any) -> Iterator[Run]:
        stack = Stack(pipe, steps=STEPS).cache(method, **options)
        with stack:
            yield stack
            report = stack.report()
        marks = "".join({"full": "F", "cached": ".", "partial": "p"}[step.kind] for step in report.steps)
        row.figures = {"full": report.full_steps, "MB": report.cache_bytes / 1e6, "pattern": marks}

    row = Row(name, group, full, using)
    return row


def peer(name: str, full: int, rival: Peer, load: Load) -> Row:
    """Somebody else's cache at a number of full steps; each on a pipeline of its own, since some leave traces."""
    own = load()

    @contextmanager
    def using(pipe: Any) -> Iterator[Run]:
        rival.put(own, full)
        try:
            yield own
        finally:
            rival.take(own)

    return Row(name, "peer", full, using)


def gated_peer(name: str, enable: Callable[[Any, float], None], threshold: float, load: Load) -> Row:
    """Somebody else's gate at a threshold."""
    own = load()

    @contextmanager
    def using(pipe: Any) -> Iterator[Run]:
        enable(own, threshold)
        try:
            yield own
        finally:
            own.transformer.disable_cache()

    return Row(f"{name}, {threshold:g}", "peer", 0, using)


def fewer(steps: int, group: str) -> Row:
    """The same model with fewer steps: its own scheduler, or the second-order one on the same noise levels."""

    @contextmanager
    def using(pipe: Any) -> Iterator[Run]:
        own = pipe.scheduler
        if group == "unipc":
            pipe.scheduler = multistep_of(own)
        try:
            yield lambda *args, **kwargs: pipe(*args, **{**kwargs, "num_inference_steps": steps})
        finally:
            pipe.scheduler = own

    return Row(f"{steps} steps, {group}", group, steps, using)


def rows_of(
    pipe: Any,
    calibrated: dict[int, dict[str, Any]],
    fitted: dict[str, dict[str, Any]],
    thresholds: Sequence[float],
    load: Load,
) -> list[Row]:
    """Base, calibrated SVD-Cache, every preset and peer at the counts that were calibrated, gates, controls."""
    rows = [fewer(STEPS, "base")]
    for full, options in calibrated.items():
        rows.append(preset(f"svd calibrated, {full}", "svd", full, "ours", **options))
        for name, policy in PRESETS.items():
            if not policy.gate and policy.site in ("output", "blocks", "modules"):
                rows.append(preset(f"{name}, {full}", name, full, interval=INTERVALS[full], warmup=3))
        rivals = {**diffusers_peers(), **cache_dit_peers()}
        rows += [peer(f"{name}, {full}", full, rival, load) for name, rival in rivals.items()]
    for threshold in thresholds:
        for name, factor in GATED.items():
            own = fitted.get(name, {})
            rows.append(preset(f"{name}, {threshold * factor:g}", name, threshold=threshold * factor, **own))
        rows += [gated_peer(name, enable, threshold, load) for name, enable in diffusers_gates().items()]
    rows += [preset(name, name) for name in ("speca", "pab", "duca", "toca") if name in PRESETS]
    rows += [fewer(n, "euler") for n in CONTROL_STEPS]
    return rows + ([fewer(n, "unipc") for n in CONTROL_STEPS] if multistep_of(pipe.scheduler) else [])
