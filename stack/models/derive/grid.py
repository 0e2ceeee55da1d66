"""The grid that the latent's tokens lie on in the output stream: which argument of the denoiser says it, and the proof.

Proven on the small model: whichever index of the latent is changed, along whichever axis, the tokens that move most
are those of that place, where the last axis runs fastest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..reached import given_to
from .streams import Blocks, Unproven
from .trace import Trace, output_of, tensors

Shape = tuple[int, ...]
AXES = {4: ((-2, -1), (-3, -2)), 5: ((-3, -2, -1), (-4, -2, -1), (-4, -3, -2))}
"""Where rows and columns, and frames before them, are in a latent of so many axes, the first of which are samples."""
SIZES = (("num_frames", "height", "width"), ("frames", "height", "width"), ("height", "width"))


@dataclass(frozen=True)
class Patches:
    """A token for each patch of the latent.

    Attributes:
        axes: of the latent, counted from its end: of rows and columns, or of frames, rows and columns.
        patch: latent pixels of a token along each of these.
    """

    latent: str
    axes: Shape
    patch: Shape

    def __call__(self, denoiser: Any, given: Mapping[str, Any]) -> Shape:
        return _plain(self.sides(tensors(given[self.latent])[0]))

    def sides(self, latent: torch.Tensor) -> Shape:
        """Patches along each of the axes."""
        return tuple(latent.shape[axis] // patch for axis, patch in zip(self.axes, self.patch, strict=True))

    def __str__(self) -> str:
        return f"a token for each {' x '.join(map(str, self.patch))} patch of {self.latent}"


@dataclass(frozen=True)
class Positions:
    """The places that positions (N, axes) or (B, N, axes) name, whatever their unit; waits for the device.

    Attributes:
        latent: the latent (B, N, C), where positions of other tokens come before those of its own.
    """

    argument: str
    latent: str = ""

    def __call__(self, denoiser: Any, given: Mapping[str, Any]) -> Shape:
        ids = given[self.argument]
        ids = (ids[0] if ids.ndim == 3 else ids).float()  # diffusers still takes them with a batch dimension
        ids = ids[-given[self.latent].shape[1] :] if self.latent else ids
        axes = [axis.unique(return_inverse=True) for axis in ids.unbind(-1)]
        counts = [len(values) for values, _ in axes]
        place = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
        for count, (_, index) in zip(counts, axes, strict=True):
            place = place * count + index
        # A picture beside its condition, or tokens in another order, fill no grid one after the other.
        if math.prod(counts) != len(ids) or not torch.equal(place, torch.arange(len(ids), device=ids.device)):
            return ()
        return _plain(tuple(counts))

    def __str__(self) -> str:
        return f"the positions in {self.argument}"


@dataclass(frozen=True)
class Named:
    """Arguments that are the sizes themselves, in tokens."""

    arguments: tuple[str, ...]

    def __call__(self, denoiser: Any, given: Mapping[str, Any]) -> Shape:
        sizes = [given.get(name) for name in self.arguments]
        whole = tuple(size for size in sizes if isinstance(size, int))
        return _plain(whole) if len(whole) == len(sizes) else ()

    def __str__(self) -> str:
        return ", ".join(self.arguments)


@dataclass(frozen=True)
class Listed:
    """(frames, rows, columns) in lists, one list per sample: a grid where there is one picture, and all are alike."""

    argument: str

    def __call__(self, denoiser: Any, given: Mapping[str, Any]) -> Shape:
        pictures = {tuple(_numbers_in(sample)) for sample in given[self.argument]}
        grids = pictures.pop() if len(pictures) == 1 else ()
        return _plain(grids[0]) if len(grids) == 1 else ()

    def __str__(self) -> str:
        return f"the sizes in {self.argument}"


Reader = Patches | Positions | Named | Listed


def token_grid(denoiser: nn.Module, trace: Trace, other: Trace, blocks: Blocks, latent: str) -> Reader:
    """What reads the grid off a call.

    Args:
        trace, other: calls of different sizes.

    Raises:
        Unproven: nothing is known that does, or the tokens lie otherwise.
    """
    reach, elsewhere = (Reach(denoiser, one, blocks, latent) for one in (trace, other))
    counts = [reach.tokens, elsewhere.tokens]
    for reader in _readers(trace, latent, reach.tokens):
        sizes = [math.prod(reader(denoiser, one.given)) for one in (trace, other)]
        if all(map(_padded, sizes, counts)) and reach.proves(reader, sizes[0]):
            return reader
    raise Unproven("the latent's tokens do not lie on a grid, row by row, whose sizes an argument says")


def _readers(trace: Trace, latent: str, tokens: int) -> Iterator[Reader]:
    """What might say it, given in this call."""
    given, one = trace.given, tensors(trace.given[latent])[0]
    for axes in AXES.get(one.ndim + isinstance(given[latent], list), ()):
        sides = [one.shape[axis] for axis in axes]
        patches = itertools.product(*([p for p in range(1, side + 1) if side % p == 0] for side in sides))
        for patch in sorted(patches, key=math.prod):
            if _padded(math.prod(sides) // math.prod(patch), tokens):
                yield Patches(latent, axes, patch)
    for name, value in given.items():
        if isinstance(value, torch.Tensor) and value.ndim in (2, 3) and name != latent and value.shape[-2] >= tokens:
            yield Positions(name, latent if one.ndim == 3 and value.shape[-2] > tokens else "")
        elif [*_numbers_in(value)]:
            yield Listed(name)
    for names in SIZES:
        if all(name in given for name in names):
            yield Named(names)


def _padded(size: int, tokens: int) -> bool:
    """Whether so many tokens can be those of a grid of this size: padding may follow, up to as many again."""
    return size <= tokens < 2 * size


def _numbers_in(value: Any) -> Iterator[Shape]:
    """The tuples of two or three whole numbers in nested lists."""
    if isinstance(value, list | tuple):
        if len(value) in (2, 3) and all(isinstance(number, int) for number in value):
            yield tuple(value)
        else:
            for item in value:
                yield from _numbers_in(item)


def _plain(grid: Shape) -> Shape:
    """(rows, columns), or (frames, rows, columns) of several frames; () of anything else."""
    if len(grid) == 4 and grid[-1] == 1:  # the fourth axis of positions counts the text's tokens
        grid = grid[:-1]
    if len(grid) == 3 and grid[0] == 1:
        grid = grid[1:]
    return grid if len(grid) in (2, 3) else ()


class Reach:
    """Which tokens of the output stream a change of the latent moves, where the blocks begin.

    Attributes:
        tokens: how many move at all; others, such as text in the same stream, do not.
    """

    def __init__(self, denoiser: nn.Module, trace: Trace, blocks: Blocks, latent: str):
        self._denoiser, self._given, self._blocks, self._latent = denoiser, trace.given, blocks, latent
        self._entry = _entry(denoiser, trace.given, blocks)
        self._own = self._moved(_changed(trace.given[latent], ...)) > 0
        self.tokens = int(self._own.sum())

    def proves(self, reader: Reader, size: int) -> bool:
        """Whether the first tokens, as many as the grid has, lie as the reader says, the last axis running fastest."""
        places = torch.arange(size)
        if not isinstance(reader, Patches):  # then the latent (B, N, C) is in the tokens' order
            return torch.equal(self._nearest(-2)[:size], places)
        sides = reader.sides(tensors(self._given[self._latent])[0])
        return all(
            torch.equal(self._nearest(axis)[:size] // patch, place)
            for axis, patch, place in zip(reader.axes, reader.patch, torch.unravel_index(places, sides), strict=True)
        )

    def _nearest(self, axis: int) -> torch.Tensor:
        """(tokens,): for each of them, the index along an axis of the latent whose change moves it most."""
        latent = self._given[self._latent]
        indices = range(tensors(latent)[0].shape[axis])
        slices = [(..., index, *(-1 - axis) * (slice(None),)) for index in indices]
        return torch.stack([self._moved(_changed(latent, each))[self._own] for each in slices]).argmax(0)

    def _moved(self, latent: Any) -> torch.Tensor:
        """(N,): how far each token of the stream is from where it was under another latent."""
        entry = _entry(self._denoiser, {**self._given, self._latent: latent}, self._blocks)
        return (entry - self._entry).norm(dim=-1)[0]


def _changed(latent: Any, where: Any) -> Any:
    """The latent of the first sample with other values there."""
    if isinstance(latent, list):
        return [_changed(latent[0], where), *latent[1:]]
    changed = latent.clone()
    changed[where] += 1.0
    return changed


def _entry(denoiser: nn.Module, given: Mapping[str, Any], blocks: Blocks) -> torch.Tensor:
    """(1, N, D): the output stream where the blocks begin."""
    path = next(path for path in blocks.paths if blocks.output in blocks.ports_at(path).takes)
    reached = given_to(denoiser.get_submodule(path), lambda: output_of(denoiser, given))
    if reached is None:
        raise Unproven(f"{path} is not called")
    tokens: torch.Tensor = reached[blocks.ports_at(path).takes[blocks.output]]
    return tokens
