"""Where a block's streams are in its arguments and in what it returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Streams = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Ports:
    """The streams of the blocks of one list.

    Attributes:
        takes: stream name to the argument that it is given in.
        places: stream name to its place in the return value.
        items: how many values a block returns; 1 for a bare one.
        kind: what they are returned in.
        joined: streams one after the other in one argument and one return value; () where each has its own.
        lengths: tokens of each joined stream; filled in while the blocks before these run.
    """

    takes: Mapping[str, str]
    places: Mapping[str, int]
    items: int
    kind: type = tuple
    joined: tuple[str, ...] = ()
    lengths: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def in_order(cls, streams: Mapping[str, str]) -> Ports:
        """Of blocks that return what they take, in this order."""
        return cls(streams, {stream: place for place, stream in enumerate(streams)}, len(streams))

    def given(self, named: Mapping[str, Any]) -> Streams:
        """Stream name to tensor (B, N, D); a block that does not take a stream has none of it."""
        if self.joined:
            return self._parts(named[self.takes[self.joined[0]]])
        return {stream: named[name] for stream, name in self.takes.items() if named.get(name) is not None}

    def read(self, result: Any) -> Streams:
        """A block's return value by stream; a stream that it does not return (the last block's text) is left out."""
        if self.joined:
            return self._parts(result)
        items = several(result)
        return {stream: items[at] for stream, at in self.places.items() if at < len(items) and items[at] is not None}

    def arguments(self, streams: Streams) -> dict[str, torch.Tensor]:
        """The arguments that hold these streams."""
        if self.joined and streams:
            return {self.takes[self.joined[0]]: self.answer(streams)}
        return {self.takes[stream]: tensor for stream, tensor in streams.items()}

    def answer(self, streams: Mapping[str, Any], rest: Any = None) -> Any:
        """Streams as a block would return them.

        Args:
            rest: an earlier return value, for what is none of the streams; None where there is nothing else.
        """
        if self.joined:
            return torch.cat([streams[stream] for stream in self.joined], 1)
        if self.items == 1:
            return next(iter(streams.values()))
        items = list(several(rest)) if rest is not None else [None] * self.items
        for stream, at in self.places.items():
            if stream in streams:
                items[at] = streams[stream]
        return self.kind(items)

    def _parts(self, whole: torch.Tensor) -> Streams:
        parts = whole.split([self.lengths[stream] for stream in self.joined], 1)
        return dict(zip(self.joined, parts, strict=True))


def several(result: Any) -> tuple[Any, ...]:
    """What a module returns, or is given, as a tuple."""
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def returned(values: Iterable[Any]) -> Any:
    """The inverse of `several`: a single value is returned bare."""
    given = tuple(values)
    return given if len(given) > 1 else given[0]


def shape_only(value: Any) -> Any:
    """The same value with tensors of the same shape, of NaN and without memory.

    Raises:
        TypeError: a tensor cannot hold NaN, or something else than tensors and collections of them.
    """
    if value is None:
        return None
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.new_full((), torch.nan).expand(value.shape)
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(map(shape_only, value))
    raise TypeError(f"expected tensors of floating point, got {type(value).__name__}")


def rows_of(value: Any, rows: Sequence[int]) -> Any:
    """These samples of a tensor, or of every tensor in a tuple or a list."""
    if isinstance(value, torch.Tensor):
        return value[list(rows)]
    return type(value)(rows_of(item, rows) for item in value) if isinstance(value, tuple | list) else value
