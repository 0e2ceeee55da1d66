"""What the layer itself costs on a step that runs in full: stamps, content of the weights, guards, decisions."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from time import perf_counter
from typing import Any

from cachebench.bench import pictures
from common import Target

from stack import Stack
from stack.caching.cache import Cache
from stack.core.installer import Installer
from stack.core.passes import Applied
from stack.runtime.target import Target as Model

from .variants import STEPS

SHARE = 0.01
LAYER = ("begin", "decide", "store")  # all that a full step asks of a cache's controller


class Timed(Cache):
    """A cache whose controller's seconds are added up."""

    seconds: list[float]

    def apply(self, target: Model, install: Installer) -> Applied:
        applied = super().apply(target, install)
        for name in LAYER:
            install.wrap_call(applied.details["controller"], name, self._timing)
        return applied

    def _timing(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds.append(perf_counter() - started)

        return timed


def layer_cost(pipe: Any, text: str, seed: int) -> dict[str, Any]:
    """Seconds of a full step, and of the layer on one: reuse with every step full, so nothing is predicted."""
    cache = Timed("reuse", interval=1)
    object.__setattr__(cache, "seconds", [])
    with Stack(pipe, steps=STEPS).add(cache) as stack:
        pictures(stack, text, STEPS, seed)
        cache.seconds.clear()
        started = perf_counter()
        pictures(stack, text, STEPS, seed)
        whole = perf_counter() - started
    return {
        "full step (s)": whole / STEPS,
        "layer (s)": sum(cache.seconds) / STEPS,
        "share": sum(cache.seconds) / whole,
    }


def cost_targets(line: dict[str, Any]) -> list[Target]:
    """The layer's share of a full step."""
    return [Target("the layer's share of a full step", line["share"], SHARE, "<=")]
