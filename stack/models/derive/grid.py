"""The grid that the output stream's tokens lie on: which of the denoiser's arguments says it, and the proof.

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
    """The places that positions (N, axes) or (B, N, axes) name, whatever their unit; waits for the device."""

    argument: str

    def __call__(self, denoiser: Any, given: Mapping[str, Any]) -> Shape:
        ids = given[self.argument]
        ids = (ids[0] if ids.ndim == 3 else ids).float()  # diffusers still takes them with a batch dimension
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
    reach = Reach(denoiser, trace, blocks, latent)
    for reader in _readers(trace, latent, reach.tokens):
        grid, again = (reader(denoiser, one.given) for one in (trace, other))
        fits = math.prod(grid) == reach.tokens and math.prod(again) == _entry(denoiser, other.given, blocks).shape[1]
        if fits and (reach.patches(reader) if isinstance(reader, Patches) else reach.in_order()):
            return reader
    raise Unproven("its tokens are not those of a grid alone, row by row, whose sizes an argument says")


def _readers(trace: Trace, latent: str, tokens: int) -> Iterator[Reader]:
    """What might say it, given in this call."""
    given, one = trace.given, tensors(trace.given[latent])[0]
    for axes in AXES.get(one.ndim + isinstance(given[latent], list), ()):
        sides = [one.shape[axis] for axis in axes]
        for patch in itertools.product(*([p for p in range(1, side + 1) if side % p == 0] for side in sides)):
            if math.prod(sides) == tokens * math.prod(patch):
                yield Patches(latent, axes, patch)
    for name, value in given.items():
        if isinstance(value, torch.Tensor) and value.ndim in (2, 3) and value.shape[-2] == tokens and name != latent:
            yield Positions(name)
        elif [*_numbers_in(value)]:
            yield Listed(name)
    for names in SIZES:
        if all(name in given for name in names):
            yield Named(names)


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
    """Which tokens of the output stream a change of the latent reaches, where the blocks begin."""

    def __init__(self, denoiser: nn.Module, trace: Trace, blocks: Blocks, latent: str):
        self._denoiser, self._given, self._blocks, self._latent = denoiser, trace.given, blocks, latent
        self._entry = _entry(denoiser, trace.given, blocks)
        self.tokens = self._entry.shape[1]

    def patches(self, reader: Patches) -> bool:
        """Whether the tokens are these patches of the latent, the last axis running fastest."""
        latent = tensors(self._given[self._latent])[0]
        places = torch.unravel_index(torch.arange(self.tokens), reader.sides(latent))
        return all(
            torch.equal(self._nearest(axis) // patch, place)
            for axis, patch, place in zip(reader.axes, reader.patch, places, strict=True)
        )

    def in_order(self) -> bool:
        """Whether the tokens are those of the latent (B, N, C), in its order."""
        return torch.equal(self._nearest(-2), torch.arange(self.tokens))

    def _nearest(self, axis: int) -> torch.Tensor:
        """(N,): for each token, the index along an axis of the latent whose change moves it most."""
        moved = []
        for index in range(tensors(self._given[self._latent])[0].shape[axis]):
            changed = _changed(self._given[self._latent], axis, index)
            entry = _entry(self._denoiser, {**self._given, self._latent: changed}, self._blocks)
            moved.append((entry - self._entry).norm(dim=-1)[0])
        return torch.stack(moved).argmax(0)


def _changed(latent: Any, axis: int, index: int) -> Any:
    """The latent with another slice at this index of an axis."""
    if isinstance(latent, list):
        return [_changed(latent[0], axis, index), *latent[1:]]
    changed = latent.clone()
    part = changed.select(axis, index)
    part += 1.0
    return changed


def _entry(denoiser: nn.Module, given: Mapping[str, Any], blocks: Blocks) -> torch.Tensor:
    """(1, N, D): the output stream where the blocks begin."""
    path = next(path for path in blocks.paths if blocks.output in blocks.ports_at(path).takes)
    reached = given_to(denoiser.get_submodule(path), lambda: output_of(denoiser, given))
    if reached is None:
        raise Unproven(f"{path} is not called")
    tokens: torch.Tensor = reached[blocks.ports_at(path).takes[blocks.output]]
    return tokens
