"""Work of one denoiser call of any size, inferred from a small instance of its class: nothing is run at full size.

Rows that a linear is given grow by a fixed number with every image token and every text token, and products of an
attention with their products. Three calls of the small instance tell these numbers, which full and small instances of a
class have in common.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..models.layout import Wiring
from ..models.small import Sizes, Small, small
from .flops import Work, attention_flops

# Square, and multiples of 32: classes round other sizes up.
CALLS = tuple(Sizes(frames=1, rows=side, columns=side, text=text) for side, text in ((8, 32), (16, 32), (8, 64)))
_ATTENTION = re.compile("scaled_dot_product|bmm")


@dataclass(frozen=True)
class ShapeWork:
    """Multiply-accumulates of one call for one picture.

    Attributes:
        linears: of every linear, by path.
        attention: of the two products with the attention matrix, inside the blocks.
        total: of the call, as `stack.measure.flops.Work`.
    """

    linears: Mapping[str, float]
    attention: float
    total: Work

    def share(self, paths: Set[str]) -> float:
        """Share of the work that these linears do."""
        whole = self.total.step()
        return sum(macs for path, macs in self.linears.items() if path in paths) / whole if whole else 0.0


def work_at(denoiser: nn.Module, wiring: Wiring, image: int, text: int) -> ShapeWork:
    """Work of a call with so many image and text tokens.

    Args:
        denoiser: may be on the meta device.

    Raises:
        StackError: the class has no small instance, or no blocks are known of it.
    """
    made = small(type(denoiser), dict(denoiser.config))  # type: ignore[arg-type]  # a mapping of every diffusers model
    counts = [_counted(made, sizes) for sizes in CALLS]
    paths = _Paths(denoiser, made.denoiser, wiring)
    linears: dict[str, float] = {}
    attention = 0.0
    for path, module in denoiser.named_modules():
        if isinstance(module, nn.Linear) and (near := paths.near(path)) in counts[0].rows:
            rows = _at([count.rows[near] for count in counts], image, text, 1)
            linears[path] = rows * module.in_features * module.out_features
    for path, block in wiring.blocks(denoiser):
        near = paths.near(path)
        wider = _width(block, wiring) / _width(made.denoiser.get_submodule(near), wiring)
        attention += wider * _at([count.attention[near] for count in counts], image, text, 2)
    inside = sum(macs for path, macs in linears.items() if wiring.block_of(path))
    work = Work(round(inside), round(attention), round(sum(linears.values()) - inside))
    return ShapeWork(linears, attention, work)


@dataclass(frozen=True)
class _Counts:
    """Of one call of a small instance: rows by linear, multiply-accumulates of attention by module."""

    rows: dict[str, int]
    attention: dict[str, float]


@torch.no_grad()
def _counted(made: Small, sizes: Sizes) -> _Counts:
    denoiser, rows = made.denoiser, dict[str, int]()
    counter = FlopCounterMode(display=False, custom_mapping=attention_flops())

    def note(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            rows[path] = rows.get(path, 0) + output.numel() // output.shape[-1]

        return hook

    linears = [(path, m) for path, m in denoiser.named_modules() if isinstance(m, nn.Linear)]
    handles = [module.register_forward_hook(note(path)) for path, module in linears]
    try:
        with counter:
            denoiser(**made.call(sizes), return_dict=False)
    finally:
        for handle in handles:
            handle.remove()
    root, found = f"{type(denoiser).__name__}.", dict[str, float]()
    for path, operations in counter.get_flop_counts().items():
        found[path.removeprefix(root)] = sum(
            count / 2 for operation, count in operations.items() if _ATTENTION.search(str(operation))
        )
    return _Counts(rows, found)


def _at(counts: list[float] | list[int], image: int, text: int, degree: int) -> float:
    """A count at other numbers of tokens: a plane through three counts, or without its lower terms of degree 2."""

    def terms(n: float, t: float) -> tuple[float, float, float]:
        return (n, t, 1.0) if degree == 1 else (n * n, n * t, t * t)

    sizes = [terms(call.rows * call.columns, call.text) for call in CALLS]
    factors = np.linalg.solve(np.array(sizes), np.array(counts, dtype=float))
    return max(0.0, float(factors @ np.array(terms(image, text))))


class _Paths:
    """Which module of the small instance does what one of the full instance does."""

    def __init__(self, full: nn.Module, little: nn.Module, wiring: Wiring):
        self.wiring = wiring
        self.counts = {
            name: (len(full.get_submodule(name)), len(little.get_submodule(name)))  # type: ignore[arg-type]  # lists
            for name in wiring.block_lists
        }

    def near(self, path: str) -> str:
        """The last block stands for the last, as it may differ; the one before it for all others."""
        for name, (full, little) in self.counts.items():
            if path.startswith(f"{name}."):
                number, *rest = path.removeprefix(f"{name}.").split(".")
                last = int(number) == full - 1
                index = little - 1 if last else min(int(number), max(0, little - 2))
                return ".".join([name, str(index), *rest])
        return path


def _width(block: nn.Module, wiring: Wiring) -> int:
    """Outputs of its first attention linear."""
    named = ((path, m) for path, m in block.named_modules() if isinstance(m, nn.Linear))
    return next((m.out_features for path, m in named if wiring.role(path) == "attention"), 1)
