"""Calls of blocks as data: their streams read, exchanged, and restricted to some samples of the batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...models.wiring import Wiring

Streams = dict[str, torch.Tensor]


@dataclass
class BlockCall:
    """One call of one block, not made yet.

    Attributes:
        block: the module.
        inner: the block's own forward.
        given: its arguments, by name.
    """

    block: nn.Module
    inner: Callable[..., Any]
    given: inspect.BoundArguments
    wiring: Wiring

    @property
    def streams(self) -> Streams:
        """Stream name to tensor (B, N, D); a block that does not take a stream has none of it."""
        named = self.given.arguments
        return {stream: named[name] for stream, name in self.wiring.streams.items() if named.get(name) is not None}

    def run(self, streams: Streams | None = None, rows: Sequence[int] | None = None) -> Streams:
        """Call the block, with other streams if given, and with the other arguments of these samples only."""
        arguments = dict(self.given.arguments)
        for name in self.wiring.batched if rows is not None else ():
            if isinstance(arguments.get(name), torch.Tensor):
                arguments[name] = arguments[name][list(rows or ())]
        for stream, tensor in (streams or {}).items():
            arguments[self.wiring.streams[stream]] = tensor
        bound = inspect.BoundArguments(self.given.signature, arguments)
        return self.read(self.inner(*bound.args, **bound.kwargs))

    def read(self, result: Any) -> Streams:
        """A block's return value by stream."""
        values = result if isinstance(result, tuple) else (result,)
        return dict(zip(self.streams, values, strict=True))

    def answer(self, streams: Streams) -> Any:
        """Streams as this block would return them."""
        values = tuple(streams[name] for name in self.streams)
        return values if len(values) > 1 else values[0]


def take(streams: Streams, rows: Sequence[int]) -> Streams:
    """Some samples of every stream."""
    return {name: tensor[list(rows)] for name, tensor in streams.items()}
