"""Calls of torch's `scaled_dot_product_attention` as data, and somebody else to answer them.

Every processor of diffusers ends there, the ones that go through its dispatcher with a native backend too, so that
queries and keys are seen as the model's own processor made them, norms and positions applied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class SdpaCall:
    """The arguments of one call.

    Attributes:
        q, k, v: (B, H, S, D); keys and values may have fewer heads than queries.
        mask: boolean, True where a query sees a key, or added to the scores; it broadcasts to (B, H, queries, keys).
        dropout: share of the weights that is dropped.
        causal: a query sees no key behind itself.
        scale: of the scores; None is 1 / sqrt(D).
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor | None = None
    dropout: float = 0.0
    causal: bool = False
    scale: float | None = None

    @property
    def tokens(self) -> int:
        """How many there are where queries and keys are as many; 0 where not, or without a dimension of heads."""
        if not self.q.ndim == self.k.ndim == 4:
            return 0
        (batch, _, queries, _), (keys_batch, _, keys, _) = self.q.shape, self.k.shape
        return queries if queries == keys and batch == keys_batch else 0

    def plain(self) -> Tensors:
        """Queries, keys and values (B, S, H, D) with as many heads each, to be attended to with 1 / sqrt(D)."""
        q, k, v = (x.transpose(1, 2) for x in (self.q, self.k, self.v))
        if k.shape[2] != q.shape[2]:
            k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
        usual = q.shape[-1] ** -0.5
        same = self.scale is None or math.isclose(self.scale, usual, rel_tol=1e-6)
        return (q if same else q * (self.scale / usual)), k, v


def _call(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> SdpaCall:
    """torch's own arguments; that heads of queries share keys (`enable_gqa`) is seen in their number."""
    return SdpaCall(query, key, value, attn_mask, dropout_p, is_causal, scale)


Answer = Callable[[SdpaCall], torch.Tensor | None]
"""(B, H, S, D) of a call; None where torch is to compute it, with the very arguments it was given."""


class Answering(TorchFunctionMode):
    """Within it this thread's calls are answered by somebody else."""

    def __init__(self, answer: Answer):
        super().__init__()
        self._answer = answer

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is F.scaled_dot_product_attention and (made := self._answer(_call(*args, **given))) is not None:
            return made
        return func(*args, **given)


_ASKED: ContextVar[Answer | None] = ContextVar("answer", default=None)  # who answers this thread's compiled calls


@contextmanager
def answering_compiled(answer: Answer) -> Iterator[None]:
    """Within it this thread's calls in code that was compiled with `AnsweredGraphs` are answered by somebody else."""
    before = _ASKED.set(answer)
    try:
        yield
    finally:
        _ASKED.reset(before)


@torch.library.custom_op("ditstack::attention", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """A call in a compiled graph. It has no gradient."""
    given = (query, key, value, attn_mask, dropout_p, is_causal)
    answer = _ASKED.get()
    made = None if answer is None else answer(_call(*given, scale=scale))
    if made is None:
        made = F.scaled_dot_product_attention(*given, scale=scale, enable_gqa=enable_gqa)
    return made.transpose(1, 2).contiguous().transpose(1, 2)


@_attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *others: Any, **more: Any) -> torch.Tensor:
    batch, heads, tokens = query.shape[:3]
    return query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)


@dataclass(frozen=True)
class AnsweredGraphs:
    """A backend of `torch.compile`: inductor, on graphs in which each call of attention is one operator that asks.

    A mode that looks at every function of torch would have to be traced, and breaks graphs.

    Attributes:
        mode: of `torch.compile`.
    """

    mode: str = "default"

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        for node in graph.graph.nodes:
            if node.target is F.scaled_dot_product_attention and _is_whole(node):
                node.target = torch.ops.ditstack.attention.default
        graph.recompile()
        return torch._inductor.compile(graph, inputs, options=torch._inductor.list_mode_options(self.mode))


def _is_whole(node: torch.fx.Node) -> bool:
    """Whether queries have a dimension of heads."""
    query = node.args[0] if node.args else node.kwargs["query"]
    return isinstance(query, torch.fx.Node) and query.meta["example_value"].ndim == 4
