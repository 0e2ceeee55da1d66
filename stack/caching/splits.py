"""Which part of a feature counts as principal: a projection, fitted to the feature or fixed by its token grid."""

from __future__ import annotations

import math
from typing import Protocol

import torch

from ..compat.subspace import principal_basis
from ..errors import StackError, choose

BASIS_LIVES = ("request", "kept", "warm")


class Split(Protocol):
    """A projection of features (B, N, D)."""

    @property
    def bytes(self) -> int:
        """Memory held."""
        ...

    def fit(self, feature: torch.Tensor) -> None:
        """A full step produced this feature."""
        ...

    def principal(self, feature: torch.Tensor) -> torch.Tensor:
        """The principal part of a feature or of a difference."""
        ...


class ChannelBasis:
    """SVD-Cache's split: the leading right singular vectors V of the feature, uncentred, rank by energy.

    Args:
        energy: share of the squared norm that the principal part holds.
        life: "request" fits V on the request's first full step and keeps it; "warm" also improves it by one subspace
            iteration on every later one; "kept" is as "request", and the owner carries V over to later requests.
    """

    def __init__(self, energy: float, life: str = "request"):
        if life not in BASIS_LIVES:
            raise choose("life of the basis", life, BASIS_LIVES)
        self.energy, self.life = energy, life
        self.basis: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        return 0 if self.basis is None else self.basis.nbytes

    def fit(self, feature: torch.Tensor) -> None:
        if self.basis is None or len(self.basis) not in (1, len(feature)):
            self.basis = principal_basis(feature, self.energy)
        elif self.life == "warm":
            rows = feature.float()
            turned, _ = torch.linalg.qr(rows.mT @ (rows @ self.basis.float()))
            self.basis = turned.to(feature.dtype)

    def principal(self, feature: torch.Tensor) -> torch.Tensor:
        if self.basis is None:
            raise StackError("nothing to project on: no full step has run in this request")
        return (feature @ self.basis) @ self.basis.mT


class TokenBand:
    """FreqCa's split: the low frequencies of a two-dimensional cosine transform over the token grid.

    Args:
        cutoff: share of each axis' frequencies that counts as low.
        grid: rows and columns of the tokens; None takes a square.
    """

    def __init__(self, cutoff: float, grid: tuple[int, int] | None = None):
        if not 0 < cutoff <= 1:
            raise StackError(f"cutoff must be in (0, 1], got {cutoff}: it is a share of the band")
        self.cutoff, self.grid = cutoff, grid
        self._passes: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def bytes(self) -> int:
        return sum(p.nbytes for p in self._passes or ())

    def fit(self, feature: torch.Tensor) -> None:
        tokens = feature.shape[1]
        rows, columns = self.grid or (math.isqrt(tokens), math.isqrt(tokens))
        if rows * columns != tokens:
            raise StackError(f"expected a grid of {tokens} tokens, got {rows} x {columns}: give the grid")
        if self._passes is None:
            self._passes = (_low_pass(rows, self.cutoff).to(feature), _low_pass(columns, self.cutoff).to(feature))

    def principal(self, feature: torch.Tensor) -> torch.Tensor:
        assert self._passes is not None, "fit() comes first"
        rows, columns = self._passes
        image = feature.unflatten(1, (len(rows), len(columns)))
        return torch.einsum("ij,bjkd,kl->bild", rows, image, columns).flatten(1, 2)


def _low_pass(length: int, cutoff: float) -> torch.Tensor:
    """Projection (length, length) on the lowest frequencies of the orthonormal cosine transform (DCT-II)."""
    keep = max(1, math.ceil(cutoff * length))
    places = torch.arange(length, dtype=torch.float64)
    waves = torch.cos(math.pi / length * (places + 0.5) * torch.arange(keep, dtype=torch.float64)[:, None])
    waves /= waves.norm(dim=1, keepdim=True)
    return waves.mT @ waves
