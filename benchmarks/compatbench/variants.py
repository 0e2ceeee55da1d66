"""What lies under a cache: the plain model, quantized, few-step, sparse, and all of it together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stack import Stack
from stack.reference.load import REFERENCES

from .disturb import Noise, Rounding

STEPS, FEW = 50, 8
ADAPTERS = {"shapes-flux": "shapes-flux-8", "shapes-video": "shapes-video-8"}  # no adapter ships for the others


@dataclass(frozen=True)
class Variant:
    """A stack without its cache.

    Attributes:
        plain: name of the variant whose cache's loss it is held against: the plain model at as many steps.
        bound: whether that holds for it; the harsher disturbances only show what breaks.
    """

    name: str
    steps: int
    build: Callable[[Any], Stack]
    plain: str
    bound: bool = True


def variants(model: str) -> list[Variant]:
    """All of them, plain ones first."""
    if model not in REFERENCES:
        raise SystemExit(f"error: expected a reference model ({', '.join(REFERENCES)}), got {model!r}")
    adapter = ADAPTERS.get(model)

    def long(pipe: Any) -> Stack:
        return Stack(pipe, steps=STEPS)

    def few(pipe: Any) -> Stack:
        stack = Stack(pipe, steps=FEW)
        return stack.distill(adapter) if adapter else stack

    def sparse(stack: Stack) -> Stack:
        return stack.sparse_attn(keep=0.5, even_if_slower=True)

    distilled = f"{FEW} steps, distilled" if adapter else f"{FEW} steps"
    short = [Variant(distilled, FEW, few, f"plain, {FEW} steps")] if adapter else []
    return [
        Variant("plain", STEPS, long, "plain", bound=False),
        Variant(f"plain, {FEW} steps", FEW, lambda pipe: Stack(pipe, steps=FEW), f"plain, {FEW} steps", bound=False),
        Variant("W8A8", STEPS, lambda pipe: long(pipe).quantize("int8"), "plain"),
        Variant("W4A16", STEPS, lambda pipe: long(pipe).quantize("nf4"), "plain"),
        *short,
        Variant("sparse 50 %", STEPS, lambda pipe: sparse(long(pipe)), "plain"),
        Variant("all together", FEW, lambda pipe: sparse(few(pipe).quantize("int8")), f"plain, {FEW} steps"),
        Variant("W6A6", STEPS, lambda pipe: long(pipe).add(Rounding(6)), "plain", bound=False),
        Variant("2 % noise", STEPS, lambda pipe: long(pipe).add(Noise(0.02)), "plain", bound=False),
    ]
