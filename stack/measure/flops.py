"""Work of a denoiser call: inferred from shapes (`counting`, for any stack), or as it really ran (`counted`).

`torch.utils.flop_counter` sees neither int8 products nor compiled code, so for stacks the linears and attentions of one
call of the *untouched* model are counted, and a row's work follows from what its steps did. An int8 product counts as
one operation like an fp32 one: this is work left out, not work made cheaper. The work of a cache's own prediction is
not counted (a few operations per value). Eager caches alone are counted as they run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..runtime.step import ALL, Computed

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

    def step(self, computed: Computed = ALL, density: float = 1.0) -> float:
        """Of one step that computed this share of everything, attention at this density where it ran."""
        inside = computed.linears * self.linears + computed.attention * density * self.attention
        return computed.rest * self.rest + inside


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


def row_work(work: Work, computed: Sequence[Computed], density: float) -> float:
    """Multiply-accumulates of a whole picture: the steps by what they computed, attention at this density."""
    return sum(work.step(step, density) for step in computed)


@dataclass
class Counted:
    """What a request really computed, as torch's dispatcher saw it.

    Attributes:
        flops: of everything inside the context, two per multiply-accumulate.
        calls: of each denoiser call, in order.
    """

    flops: int = 0
    calls: list[int] = field(default_factory=list)

    def shares(self, full: int) -> list[float]:
        """Work of each call as a share of a full one's."""
        return [call / full for call in self.calls]


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def attention_flops() -> dict[Any, Any]:
    """CPU attention, which is not in the registry of torch's counter."""
    aten: Any = torch.ops.aten
    return {aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


@contextmanager
def counted(denoiser: nn.Module) -> Iterator[Counted]:
    """Count the products of whatever runs inside this context, with `torch.utils.flop_counter`.

    Token-wise and per-module caches count right, since nothing is inferred from the kind of a step. What the counter
    does not know is left out: element-wise work, decompositions (SVD, eigenvalues), int8 products and compiled code.
    CPU attention is not in its registry and is added here.

    Args:
        denoiser: whose calls are counted one by one.

    Yields:
        Figures that are complete when the context ends.
    """
    found, begun = Counted(), [0]
    counter = FlopCounterMode(display=False, custom_mapping=attention_flops())

    def begin(*_: Any) -> None:
        begun[0] = counter.get_total_flops()

    def end(*_: Any) -> None:
        found.calls.append(counter.get_total_flops() - begun[0])

    handles = [denoiser.register_forward_pre_hook(begin), denoiser.register_forward_hook(end)]
    try:
        with counter:
            yield found
    finally:
        found.flops = counter.get_total_flops()
        for handle in handles:
            handle.remove()
