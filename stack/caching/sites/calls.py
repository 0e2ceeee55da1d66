"""Calls of blocks as data: their streams read, exchanged, and restricted to some samples of the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn

from ...core.arguments import Arguments
from ...core.installer import Installer
from ...core.ranks import Ranks
from ...models.layout import Wiring
from ...models.parallel import behind_split
from ...models.ports import Ports, Streams, rows_of
from ...runtime.step import Computed
from ...runtime.step_clock import Clock
from ..controller import CacheSlot


class Decides(Protocol):
    """What a range of blocks asks: a `CacheController`, or an observer."""

    clock: Clock
    cached_work: Computed
    ranks: Ranks

    @property
    def probe(self) -> str: ...

    @property
    def slots(self) -> list[CacheSlot]: ...

    def begin(self, tokens: torch.Tensor) -> None: ...

    def decide(self, probe: torch.Tensor | None = None) -> list[bool]: ...

    def store(self, key: str, feature: torch.Tensor, slots: Sequence[CacheSlot]) -> None: ...

    def predict(self, key: str, slots: Sequence[CacheSlot]) -> torch.Tensor: ...

    def reject(self, slots: Sequence[CacheSlot]) -> None: ...


@dataclass
class BlockCall:
    """One call of one block, not made yet.

    Attributes:
        block: the module.
        inner: the block's own forward.
        arguments: how its arguments are named.
        given: what it was called with, by name.
        ports: where its streams are.
        clock: is told of which samples the block runs.
    """

    block: nn.Module
    inner: Callable[..., Any]
    arguments: Arguments
    given: Mapping[str, Any]
    wiring: Wiring
    ports: Ports
    clock: Clock

    @property
    def streams(self) -> Streams:
        """Stream name to tensor (B, N, D); a block that does not take a stream has none of it."""
        return self.ports.given(self.given)

    def run(
        self, streams: Streams | None = None, rows: Sequence[int] | None = None, tokens: torch.Tensor | None = None
    ) -> Streams:
        """Call the block, with other streams if given, and with the other arguments of these samples only.

        Args:
            tokens: (n,) positions of the output stream's tokens, where the streams given hold only some of them.
        """
        arguments = dict(self.given)
        if tokens is not None:
            arguments |= self._cut(arguments, tokens)
        for name in self.wiring.batched if rows is not None else ():
            if arguments.get(name) is not None:
                arguments[name] = rows_of(arguments[name], rows or ())
        arguments |= self.ports.arguments(streams or {})
        if rows is None:
            result = self.arguments.call(self.inner, arguments)
        else:
            with self.clock.only(rows):
                result = self.arguments.call(self.inner, arguments)
        if tokens is None or streams is None:
            return self.ports.read(result)
        # Joined streams come back as long as they were given.
        return replace(self.ports, lengths={name: one.shape[1] for name, one in streams.items()}).read(result)

    def _cut(self, arguments: Mapping[str, Any], tokens: torch.Tensor) -> dict[str, Any]:
        """The arguments that run along the tokens, for the tokens that are left: some of the output stream's."""
        counts = {name: tensor.shape[1] for name, tensor in self.streams.items()}
        return {
            name: along.cut(arguments[name], counts, self.wiring.output_stream, tokens)
            for name, along in self.wiring.along.items()
            if arguments.get(name) is not None
        }


def take(streams: Streams, rows: Sequence[int]) -> Streams:
    """Some samples of every stream."""
    return {name: tensor[list(rows)] for name, tensor in streams.items()}


def before_blocks(
    denoiser: nn.Module,
    wiring: Wiring,
    install: Installer,
    clock: Clock,
    visit: Callable[[int, BlockCall], Streams],
) -> int:
    """Let every call of a block be answered by `visit(number, call)`; returns the number of blocks."""
    blocks, lengths = wiring.blocks(denoiser), dict[str, int]()
    for number, (path, block) in enumerate(blocks):
        own, behind = (
            path.rpartition(".")[0] for path, _ in (blocks[number], blocks[min(number + 1, len(blocks) - 1)])
        )
        notes = own != behind and behind in wiring.joins
        install.wrap_call(*behind_split(block), _stand_in(number, path, block, wiring, clock, visit, lengths, notes))
    return len(blocks)


def _stand_in(
    number: int,
    path: str,
    block: nn.Module,
    wiring: Wiring,
    clock: Clock,
    visit: Callable[[int, BlockCall], Streams],
    lengths: dict[str, int],
    notes: bool,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Args beyond those of `before_blocks`: `lengths` of the streams that later blocks are given in one, and whether
    this block `notes` them: it is the last one that returns each on its own.
    """
    arguments = Arguments(block.forward, block)
    ports = replace(wiring.ports_of(path, arguments.names), lengths=lengths)

    def wrapper(inner: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            call = BlockCall(block, inner, arguments, arguments.named(args, kwargs), wiring, ports, clock)
            streams = visit(number, call)
            if notes:
                lengths.update((name, tensor.shape[1]) for name, tensor in streams.items())
            return ports.answer(streams)

        return forward

    return wrapper
