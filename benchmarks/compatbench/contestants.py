"""The caches, each naive and with the layer, and the plain reuse that neither may lose to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stack import Stack
from stack.caching.cache import Cache
from stack.caching.methods import PRESETS, READING
from stack.compat.noise import Floor
from stack.core.facts import Facts
from stack.core.passes import Finding

from .variants import FEW, STEPS, Variant

FULL = {STEPS: {"interval": 5, "warmup": 3}, FEW: {"interval": 2, "warmup": 1}}  # 12 of 50, 4 of 8
# On even steps, as published; FastCache with fitted maps.
READINGS = {method: method + READING for method in ("svd", "taylorseer", "duca")}
READINGS["fastcache"] = "fastcache-published-gate"
METHODS = ("svd", "taylorseer", "fastcache", "duca")
AS_CALLED = ", as called"  # with nothing said but a number of full steps
CALLED = {STEPS: 12, FEW: 5}
# Two full steps next to each other, as gates and warm-ups make them: a second difference over a gap of one step.
PAIRS = "taylorseer, in pairs"
IN_PAIRS = {"full_steps": tuple(step for step in range(STEPS) if step % 8 < 2), "steps": STEPS}
COARSE = ("W6A6", "2 % noise")  # disturbances whose size no facts tell: it is measured, as `Stack.noise_floor` does
Measured = Callable[[str, str], Floor]


class Naive(Cache):
    """A cache put on as if nothing lay under it: no plan looks at it, nothing is repaired."""

    def check(self, facts: Facts) -> list[Finding]:
        return []


@dataclass(frozen=True)
class Contestant:
    """One way to join a cache with a variant.

    Attributes:
        kind: "naive", "layer" or "reuse".
        put: the stack with the cache on.
    """

    method: str
    kind: str
    put: Callable[[Any], Stack]


def contestants(variant: Variant, maps: Callable[[str], str], measured: Measured) -> list[Contestant]:
    """Every method on a variant.

    Args:
        maps: FastCache's maps, by the variant they are fitted on; a file's path.
        measured: the noise floor of a variant at a site; asked only when a stack is put on.
    """
    found: list[Contestant] = []
    even = FULL[variant.steps]
    for method in METHODS:
        options: dict[str, Any] = dict(even) if method != "fastcache" else {}
        careful = dict(options)
        if method == "fastcache":
            of_changes = {"approximation": "delta"}
            options, careful = ({"maps": maps(name), **of_changes} for name in (variant.plain, variant.name))
        found += _joined(variant, method, READINGS.get(method, method), options, careful, measured)
    if variant.name in COARSE or (variant.name == variant.plain and variant.steps == STEPS):
        found += _joined(variant, PAIRS, READINGS["taylorseer"], IN_PAIRS, IN_PAIRS, measured)
    return found


def as_called(variant: Variant) -> list[Contestant]:
    """The defaults on a variant, which are never joined naively."""
    count = CALLED[variant.steps]
    return [
        Contestant(f"{method}{AS_CALLED}", "layer", lambda pipe, m=method: variant.build(pipe).cache(m, count=count))
        for method in METHODS
        if method != "fastcache"
    ]


def _joined(
    variant: Variant,
    label: str,
    method: str,
    options: dict[str, Any],
    careful: dict[str, Any],
    measured: Measured,
) -> list[Contestant]:
    """A method naively, with the layer, and plain reuse on the naive one's full steps."""

    def layered(pipe: Any) -> Stack:
        policy = PRESETS[method]
        noisy = variant.name in COARSE and policy.forecast.effective_order
        return variant.build(pipe).cache(
            method, **careful, **({"noise": measured(variant.name, policy.site.noise_feature)} if noisy else {})
        )

    found = [
        Contestant(label, "naive", _putting(variant, Naive(method, **options))),
        Contestant(label, "layer", layered),
    ]
    if method != "fastcache":
        found.append(Contestant(label, "reuse", _putting(variant, Naive("reuse", corrected=False, **_when(options)))))
    return found


def _when(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("interval", "warmup", "full_steps", "steps") if name in options}


def _putting(variant: Variant, cache: Cache) -> Callable[[Any], Stack]:
    return lambda pipe: variant.build(pipe).add(cache)
