"""Work of a denoiser call, counted from shapes.

`torch.utils.flop_counter` sees neither CPU attention nor int8 products, so the linears and attentions of one call of
the *untouched* model are counted here, and a row's work follows from what its steps did. An int8 product counts as one
operation like an fp32 one: this is work left out, not work made cheaper. The work of a cache's own prediction is not
counted (a few operations per value).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention
from torch import nn

QUERIES, KEYS = ("to_q", "add_q_proj"), ("to_k", "add_k_proj")


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of one denoiser call for one picture.

    Attributes:
        linears: of the linears inside the blocks.
        attention: of the two products with the attention matrix, dense.
        rest: of what is outside the blocks, which runs on every step.
    """

    linears: int
    attention: int
    rest: int

    def step(self, kind: str = "full", density: float = 1.0) -> float:
        """Of one step. A cached step runs no block; a partial one is counted as full, since its share is not known."""
        return self.rest + (0 if kind == "cached" else self.linears + density * self.attention)


@contextmanager
def counting(denoiser: nn.Module, blocks: Sequence[tuple[str, nn.Module]]) -> Iterator[Callable[[], Work]]:
    """Count the first denoiser call made inside this context.

    Args:
        blocks: (path, block) of the transformer blocks, as `Wiring.blocks` gives them.

    Yields:
        A function that gives the work counted, per picture of the batch. All zero if the denoiser was not called.
    """
    inside = {id(m) for _, block in blocks for m in block.modules()}
    rows: dict[int, tuple[nn.Linear, int, int]] = {}

    def note(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        assert isinstance(module, nn.Linear)
        if id(module) not in rows:
            rows[id(module)] = (module, output.numel() // output.shape[-1], output.shape[0])

    handles = [m.register_forward_hook(note) for m in denoiser.modules() if isinstance(m, nn.Linear)]
    try:
        yield lambda: _work(denoiser, rows, inside)
    finally:
        for handle in handles:
            handle.remove()


def _work(denoiser: nn.Module, rows: dict[int, tuple[nn.Linear, int, int]], inside: set[int]) -> Work:
    batch = max((count for _, _, count in rows.values()), default=1)
    macs = {key: n * linear.in_features * linear.out_features for key, (linear, n, _) in rows.items()}
    attention = outside = 0
    for module in denoiser.modules():
        if isinstance(module, AttentionModuleMixin | Attention):
            named = dict(module.named_children())
            queries, keys = (
                sum(rows[id(named[n])][1] for n in names if id(named.get(n)) in rows) for names in (QUERIES, KEYS)
            )
            to_k = named.get("to_k")
            inner = to_k.out_features if isinstance(to_k, nn.Linear) else 0
            products = 2 * queries * keys * inner // batch
            attention += products if id(module) in inside else 0
            outside += 0 if id(module) in inside else products
    linears = sum(value for key, value in macs.items() if key in inside)
    return Work(linears // batch, attention // batch, (sum(macs.values()) - linears + outside) // batch)


def row_work(work: Work, kinds: Sequence[str], density: float) -> float:
    """Multiply-accumulates of a whole picture: the steps by what they were, attention at this density."""
    return sum(work.step(kind, density) for kind in kinds)
