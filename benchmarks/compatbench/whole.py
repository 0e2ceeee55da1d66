"""A stack of everything against its parts: what they lose and gain together beyond what each does alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from statistics import median
from time import perf_counter
from typing import Any

import torch
from cachebench.bench import pictures
from common import Target

from stack import Stack
from stack.measure.metrics import psnr

from .variants import STEPS

INTERACTION_DB, EFFICIENCY = 1.0, 0.95
ALL, BASE = "all", "base"


def whole(pipe: Any, texts: list[str], calibrated: dict[str, Any], rounds: int, seed: int) -> list[dict[str, Any]]:
    """The base, every pass alone and all of them, in interleaved rounds; a stack is put on outside its time."""
    parts: dict[str, Callable[[Stack], Stack]] = {
        "quantize": lambda stack: stack.quantize("int8"),
        "sparse_attn": lambda stack: stack.sparse_attn(keep=0.5),
        "cache": lambda stack: stack.cache("svd-published", **calibrated),
    }
    stacks = {BASE: Stack(pipe, steps=STEPS)}
    stacks |= {name: put(Stack(pipe, steps=STEPS)) for name, put in parts.items()}
    stacks[ALL] = Stack(pipe, steps=STEPS)
    for put in parts.values():
        put(stacks[ALL])
    made: dict[str, torch.Tensor] = {}
    seconds: dict[str, list[float]] = {name: [] for name in stacks}
    for turn in range(rounds):
        for name, stack in stacks.items():
            with stack:
                call = partial(pictures, stack, texts[turn % len(texts)], STEPS, seed + turn % len(texts))
                if turn == 0:
                    pictures(stack, texts[0], 2, seed)  # warm-up
                started = perf_counter()
                call()
                seconds[name].append(perf_counter() - started)
                if turn == 0:
                    made[name] = pictures(stack, texts, STEPS, seed)
    ratios = {n: median(b / s for b, s in zip(seconds[BASE], own, strict=True)) for n, own in seconds.items()}
    return [
        {
            "row": name,
            "seconds": median(seconds[name]),
            "speedup": ratios[name],
            "psnr": None if name == BASE else min(99.0, psnr(made[name], made[BASE])),
        }
        for name in stacks
    ]


def whole_targets(rows: list[dict[str, Any]]) -> list[Target]:
    """Interaction and efficiency of the whole."""
    by = {row["row"]: row for row in rows}
    parts = [row for name, row in by.items() if name not in (BASE, ALL)]
    lost = min(row["psnr"] for row in parts) - by[ALL]["psnr"]
    efficiency = by[ALL]["speedup"] / prod(row["speedup"] for row in parts)
    return [
        Target("everything: PSNR lost beyond the worst pass alone (dB)", lost, INTERACTION_DB, "<="),
        Target("everything: speedup over the product of the parts", efficiency, EFFICIENCY),
    ]
