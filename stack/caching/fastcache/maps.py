"""FastCache's fitted maps of one model: one per block and stream, one for the whole stack, and what each costs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from ...core.errors import StackError
from ..fitted import Fitted, read
from .chi_square import tolerated_scale
from .linear_map import LinearMap

WHOLE = "stack"  # key of the map from the first block's input to what all blocks add
APPROXIMATIONS = ("static", "delta")
_NAME = re.compile(r"tables/(static|delta)|(static|delta)/.+/(bias|0|1)")


@dataclass(frozen=True, eq=False)
class LinearMaps(Fitted):
    """Made by `Stack.fit_maps`, kept in a safetensors file beside the recipe.

    Attributes:
        maps: per approximation, "block number/stream" to its map, "stack" for the whole stack. Those of "static" give
            what is added to an input; those of "delta" how much more is added when the input changes between steps.
        tables: "static" and "delta" to (2, blocks, calls): delta of each calibration call, and the relative error that
            replacing the block would have caused in it.
    """

    maps: dict[str, dict[str, LinearMap]]
    tables: dict[str, torch.Tensor]

    def __repr__(self) -> str:
        calls = self.tables["static"].shape[-1] if "static" in self.tables else 0
        return f"LinearMaps(family={self.family!r}, blocks={self.blocks}, width={self.width}, from {calls} calls)"

    def scales(self, approximation: str, allowed: float) -> list[float]:
        """`tolerated_scale` of every block."""
        changes, errors = self.tables[approximation].tolist()
        return [tolerated_scale(change, error, allowed) for change, error in zip(changes, errors, strict=True)]

    def save(self, path: str | Path) -> None:
        """Write them to a safetensors file."""
        tensors = {f"tables/{name}": table for name, table in self.tables.items()}
        for name, maps in self.maps.items():
            for key, fitted in maps.items():
                tensors[f"{name}/{key}/bias"] = fitted.bias
                tensors |= {f"{name}/{key}/{i}": factor for i, factor in enumerate(fitted.factors)}
        self._write(path, tensors)


def load_maps(path: str | Path) -> LinearMaps:
    """Read what `LinearMaps.save` wrote.

    Raises:
        StackError: no such file, or one that does not hold the maps of a model.
    """
    how = "stack.fit_maps(prompts, save=...)"
    about, tensors = read(path, "linear maps", how)
    wanted = [f"{known}/{WHOLE}/bias" for known in APPROXIMATIONS] + [f"tables/{known}" for known in APPROXIMATIONS]
    odd = [name for name in tensors if not _NAME.fullmatch(name)]
    if odd or any(name not in tensors for name in wanted):
        raise StackError(f"{path} holds no linear maps: expected a file that {how} wrote")
    maps: dict[str, dict[str, LinearMap]] = {known: {} for known in APPROXIMATIONS}
    for name in tensors:
        approximation, _, key = name.removesuffix("/bias").partition("/")
        if name.endswith("/bias"):
            maps[approximation][key] = _map(tensors, f"{approximation}/{key}", about["width"], path)
    tables = {name.removeprefix("tables/"): tensor for name, tensor in tensors.items() if name.startswith("tables/")}
    if any(table.ndim != 3 or table.shape[:2] != (2, about["blocks"]) for table in tables.values()):
        raise StackError(f"{path}: expected tables of 2 x {about['blocks']} blocks x calls")
    known = {name: about[name] for name in ("family", "blocks", "width", "made_under")}
    return LinearMaps(**known, maps=maps, tables=tables)


def _joined(shapes: list[tuple[int, ...]]) -> bool:
    """Whether each factor takes what the one before gives."""
    return all(left[1] == right[0] for left, right in pairwise(shapes))


def _map(tensors: dict[str, torch.Tensor], name: str, width: int, path: str | Path) -> LinearMap:
    factors = tuple(tensors[f"{name}/{i}"] for i in range(2) if f"{name}/{i}" in tensors)
    shapes = [tuple(factor.shape) for factor in factors]
    fits = all(len(shape) == 2 for shape in shapes) and tensors[f"{name}/bias"].shape == (width,)
    if not shapes or not fits or not _joined(shapes) or (shapes[0][0], shapes[-1][1]) != (width, width):
        raise StackError(f"{path}: {name} has factors of shapes {shapes}: expected a map of width {width}")
    return LinearMap(factors, tensors[f"{name}/bias"])
