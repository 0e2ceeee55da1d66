"""Principal subspaces found offline: once, on calibration prompts, for all requests to come."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..bounds import sin_theta_bound
from ..core.errors import StackError
from ..core.validate import checked
from .fitted import Fitted, read


@dataclass(frozen=True, eq=False)
class Bases(Fitted):
    """Made by `Stack.fit_bases`, kept in a safetensors file beside the recipe.

    Attributes:
        vectors: by the key of a feature (its stream, or block and stream), V (D, k) with orthonormal columns.
        spectra: by the same key, the largest eigenvalue of the features' Gram matrix, and the gap between the last that
            is kept and the first that is not; both over the sum of all.
    """

    vectors: dict[str, torch.Tensor]
    spectra: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __repr__(self) -> str:
        ranks = {key: basis.shape[1] for key, basis in self.vectors.items()}
        return f"Bases(family={self.family!r}, blocks={self.blocks}, width={self.width}, ranks={ranks})"

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
        self._write(path, self.vectors, spectra=json.dumps(dict(self.spectra)))

    @property
    def bits(self) -> tuple[int, int]:
        """Of weights and activations that the features were made under; floating point is 16."""
        conditions = dict(entry.partition("=")[::2] for entry in self.made_under)
        found = (conditions.get(f"{name}_bits", "") for name in ("weight", "activation"))
        weights, activations = (min(16, int(bits)) if bits.isdecimal() else 16 for bits in found)
        return weights, activations

    def turned(self, noise: float) -> float:
        """How far a relative error of this size may turn the worst of them: the bound on sin(theta), at most 1.

        A feature F off by E changes its Gram matrix by F^T E + E^T F + E^T E, at most (2 e sqrt(l) + e^2) of its trace
        with e = |E| / |F| and l the largest eigenvalue's share (`stack.bounds.sin_theta_bound`). 1 where no spectrum
        is known.
        """
        worst = 0.0
        for key in self.vectors:
            largest, gap = self.spectra.get(key, (1.0, 0.0))
            gram_noise = 2 * noise * math.sqrt(largest) + noise**2
            worst = max(worst, sin_theta_bound(gram_noise, gap))
        return worst


def load_bases(path: str | Path) -> Bases:
    """Read what `Bases.save` wrote.

    Raises:
        StackError: no such file, or one of something else.
    """
    about, vectors = read(path, "bases", "stack.fit_bases(prompts, save=...)")
    try:
        spectra_read = json.loads(about.pop("spectra", "{}"))
    except (ValueError, RecursionError):
        raise StackError(f"{path}: spectra: expected JSON") from None
    spectra = checked(dict[str, tuple[float, float]], spectra_read, f"{path}: spectra")
    if flat := [key for key, one in vectors.items() if one.ndim != 2 or not one.is_floating_point()]:
        raise StackError(
            f"{path}: {flat[0]}: expected a basis of D rows and k columns, got {tuple(vectors[flat[0]].shape)}"
        )
    known = {name: about[name] for name in ("family", "blocks", "width", "made_under")}
    return Bases(**known, vectors=vectors, spectra=spectra)
