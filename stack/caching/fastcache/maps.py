"""FastCache's fitted maps of one model: one per block and stream, one for the whole stack, and what each costs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ...errors import StackError
from ...facts import Facts
from .chi_square import tolerated_scale
from .linear_map import LinearMap

WHOLE = "stack"  # key of the map from the first block's input to what all blocks add
CARRIES = ("map", "moved")


@dataclass(frozen=True, eq=False)
class LinearMaps:
    """Made by `Stack.fit_maps`, kept in a safetensors file beside the recipe.

    Attributes:
        family, blocks, width: of the model they were fitted on.
        maps: per carry, "block number/stream" to its map, "stack" for the whole stack. Those of "map" give what is
            added to an input; those of "moved" how much more is added when the input changes between steps.
        tables: "map" and "moved" to (2, blocks, calls): delta of each calibration call, and the relative error that
            replacing the block would have caused in it.
    """

    family: str
    blocks: int
    width: int
    maps: dict[str, dict[str, LinearMap]]
    tables: dict[str, torch.Tensor]

    def scales(self, carry: str, allowed: float) -> list[float]:
        """`tolerated_scale` of every block."""
        changes, errors = self.tables[carry].tolist()
        return [tolerated_scale(change, error, allowed) for change, error in zip(changes, errors, strict=True)]

    def misfit(self, facts: Facts) -> str:
        """What about them does not fit this model, in words; "" if they fit."""
        mine = (self.family, self.blocks, self.width)
        here = (facts.family, facts.blocks, facts.width)
        if mine == here:
            return ""
        words = "{} with {} blocks of width {}"
        return f"the maps were fitted on {words.format(*mine)}, this is {words.format(*here)}"

    def save(self, path: str | Path) -> None:
        """Write them to a safetensors file."""
        tensors = {f"tables/{carry}": table for carry, table in self.tables.items()}
        for carry, maps in self.maps.items():
            for key, each in maps.items():
                tensors[f"{carry}/{key}/bias"] = each.bias
                tensors |= {f"{carry}/{key}/{i}": factor for i, factor in enumerate(each.factors)}
        about = {"family": self.family, "blocks": str(self.blocks), "width": str(self.width)}
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path, metadata=about)


def load_maps(path: str | Path) -> LinearMaps:
    """Read what `LinearMaps.save` wrote.

    Raises:
        StackError: no such file, or one that does not hold the maps of a model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about, names = file.metadata() or {}, list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise StackError(f"no linear maps in {path} ({error}): stack.fit_maps(prompts, save=...) writes them") from None
    missing = {"family", "blocks", "width"} - about.keys()
    if missing or any(f"{carry}/{WHOLE}/bias" not in tensors for carry in CARRIES):
        raise StackError(f"{path} holds no linear maps: expected a file that stack.fit_maps(prompts, save=...) wrote")
    width = int(about["width"])
    maps: dict[str, dict[str, LinearMap]] = {carry: {} for carry in CARRIES}
    for name in tensors:
        carry, _, key = name.removesuffix("/bias").partition("/")
        if name.endswith("/bias"):
            maps[carry][key] = _map(tensors, f"{carry}/{key}", width, path)
    tables = {name.removeprefix("tables/"): tensor for name, tensor in tensors.items() if name.startswith("tables/")}
    return LinearMaps(about["family"], int(about["blocks"]), width, maps, tables)


def _map(tensors: dict[str, torch.Tensor], name: str, width: int, path: str | Path) -> LinearMap:
    factors = tuple(tensors[f"{name}/{i}"] for i in range(2) if f"{name}/{i}" in tensors)
    shapes = [tuple(factor.shape) for factor in factors]
    joined = all(left[1] == right[0] for left, right in pairwise(shapes))
    if not shapes or not joined or (shapes[0][0], shapes[-1][1]) != (width, width):
        raise StackError(f"{path}: {name} has factors of shapes {shapes}: expected a map of width {width}")
    return LinearMap(factors, tensors[f"{name}/bias"])
