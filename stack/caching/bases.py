"""Principal subspaces found offline: once, on calibration prompts, for all requests to come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import StackError
from .fitted import Fitted, read


@dataclass(frozen=True, eq=False)
class Bases(Fitted):
    """Made by `Stack.fit_bases`, kept in a safetensors file beside the recipe.

    Attributes:
        vectors: by the key of a feature (its stream, or block and stream), V (D, k) with orthonormal columns.
    """

    vectors: dict[str, torch.Tensor]

    def of(self, key: str) -> torch.Tensor:
        """The basis of a feature.

        Raises:
            StackError: none was found for it.
        """
        if key not in self.vectors:
            known = ", ".join(list(self.vectors)[:4])
            raise StackError(f"no basis for {key!r}: found for {known}; fit_bases() again with the cache as it is now")
        return self.vectors[key]

    def save(self, path: str | Path) -> None:
        """Write them to a safetensors file."""
        self._write(path, self.vectors)


def load_bases(path: str | Path) -> Bases:
    """Read what `Bases.save` wrote.

    Raises:
        StackError: no such file, or one of something else.
    """
    about, vectors = read(path, "bases", "stack.fit_bases(prompts, save=...)")
    return Bases(**about, vectors=vectors)
