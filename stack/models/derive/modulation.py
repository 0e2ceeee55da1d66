"""Where the first block modulates its tokens: what its attention is given, if that changes with the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ..layout import CachedModule
from ..modulated import UpToAttention
from .linears import ATTENTION
from .streams import Blocks, Unproven
from .trace import Trace


@torch.no_grad()
def modulated_input(
    denoiser: nn.Module, trace: Trace, later: Trace, blocks: Blocks, modules: Mapping[str, Sequence[CachedModule]]
) -> UpToAttention:
    """How the first block's modulated input is made.

    Args:
        later: a call at another time, all else the same.
        modules: what a per-module cache keeps, by block list.

    Raises:
        Unproven: there is none, or it does not change with the time.
    """
    block = blocks.lists[0].calls[0]
    paths = [path for one in modules.get(blocks.lists[0].path, ()) for path in _attentions(one)]
    called = [path for path in paths if len(trace.of(f"{block.path}.{path}")) == 1]
    if not called:
        raise Unproven("no attention of its own in the first block")
    attention = trace.of(f"{block.path}.{called[0]}")[0]
    tokens = block.given[blocks.ports_at(block.path).takes[blocks.output]].shape[:2]
    fitting = (n for n, v in attention.given.items() if isinstance(v, torch.Tensor) and v.ndim == 3)
    argument = next((name for name in fitting if attention.given[name].shape[:2] == tokens), "")
    if not argument:
        raise Unproven("its attention is not given the stream's tokens")
    if torch.equal(attention.given[argument], later.of(attention.path)[0].given[argument]):
        raise Unproven("what its attention is given does not change with the time")
    found = UpToAttention(called[0], argument)
    if not torch.equal(found(block.module, block.given), attention.given[argument]):
        raise Unproven("the block alone gives its attention other tokens")
    return found


def _attentions(module: CachedModule) -> tuple[str, ...]:
    """The module itself, or what it ends."""
    return (module.path,) if module.role == ATTENTION else module.spares
