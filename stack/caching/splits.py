"""Which part of a feature counts as principal: a projection, fitted to the feature or fixed by its token grid."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from ..compat.noise import shrunk, wiener
from ..compat.subspace import principal_basis
from ..core.errors import StackError, choose
from ..core.ranks import ALONE, Ranks
from .bases import Bases
from .options import Options

BASIS_LIVES = ("request", "warm")


class Split(Protocol):
    """A projection of features (B, N, D)."""

    @property
    def bytes(self) -> int:
        """Memory held."""
        ...

    def fit(self, feature: torch.Tensor, noise: float = 0.0) -> None:
        """A full step produced this feature, with a random error of `noise` relative to it."""
        ...

    def principal(self, feature: torch.Tensor) -> torch.Tensor:
        """The principal part of a feature or of a difference."""
        ...

    def denoised(self, difference: torch.Tensor, variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Principal part and residual of a difference, each shrunk to what stands out of a noise (B,) per element."""
        ...


class ChannelBasis:
    """SVD-Cache's split: the leading right singular vectors V of the feature, uncentred, rank by energy.

    Args:
        energy: share of the squared norm that the principal part holds.
        life: "request" fits V on the request's first full step and keeps it; "warm" also improves it by one subspace
            iteration on every later one.
        found: V (D, k) found offline, which takes the place of the first fit; "warm" goes on from it.
        ranks: the processes that share the tokens; V is that of all of them.
    """

    def __init__(self, energy: float, life: str = "request", found: torch.Tensor | None = None, ranks: Ranks = ALONE):
        if life not in BASIS_LIVES:
            raise choose("life of the basis", life, BASIS_LIVES)
        self.energy, self.life, self.found, self.ranks = energy, life, found, ranks
        self.basis: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        return 0 if self.basis is None else self.basis.nbytes

    def fit(self, feature: torch.Tensor, noise: float = 0.0) -> None:
        if self.basis is None or len(self.basis) not in (1, len(feature)):
            found = None if self.found is None else self.found.to(feature)[None]
            self.basis = principal_basis(feature, self.energy, noise, self.ranks) if found is None else found
        elif self.life == "warm":
            rows = feature.float()
            turned, _ = torch.linalg.qr(self.ranks.sum(rows.mT @ (rows @ self.basis.float())))
            self.basis = turned.to(feature.dtype)

    def principal(self, feature: torch.Tensor) -> torch.Tensor:
        return (feature @ self._fitted) @ self._fitted.mT

    def denoised(self, difference: torch.Tensor, variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Every principal coefficient has a gain of its own, the residual one for all of it.

        Noise that is spread evenly over the D directions leaves each coefficient its variance per element, while the
        signal gathers in few of them: that is why prediction in a subspace survives noise that drowns the whole.
        """
        basis = self._fitted
        coefficients = difference @ basis
        power = self.ranks.mean(coefficients.float().square().mean(1))  # (B, k)
        gains = wiener(power, variance[:, None], difference.shape[1] * self.ranks.size)
        residual = difference - coefficients @ basis.mT
        principal = (coefficients * gains[:, None].to(coefficients.dtype)) @ basis.mT
        return principal, shrunk(residual, variance, 1 - basis.shape[2] / basis.shape[1], self.ranks)

    @property
    def _fitted(self) -> torch.Tensor:
        if self.basis is None:
            raise StackError("nothing to project on: no full step has run in this request")
        return self.basis


class TokenBand:
    """FreqCa's split: the low frequencies of a cosine transform along every axis of the token grid.

    FreqCa (arXiv 2510.08669) is about pictures; that a video's frames are one more axis is a reading of this project.

    Args:
        cutoff: share of each axis' frequencies that counts as low, at least one of each: the mean.
        grid: of the tokens, (rows, columns) or (frames, rows, columns), the last running fastest.
    """

    def __init__(self, cutoff: float, grid: tuple[int, ...] = ()):
        if not 0 < cutoff <= 1:
            raise StackError(f"cutoff must be in (0, 1], got {cutoff}: it is a share of the band")
        self.cutoff, self.grid = cutoff, grid
        self._passes: list[torch.Tensor] = []

    @property
    def bytes(self) -> int:
        return sum(matrix.nbytes for matrix in self._passes)

    def fit(self, feature: torch.Tensor, noise: float = 0.0) -> None:
        """Raises: StackError where the grid does not hold these tokens."""
        tokens = feature.shape[1]
        if not self.grid or math.prod(self.grid) != tokens:
            grid = " x ".join(map(str, self.grid)) or "no grid"
            raise StackError(f"expected a grid of {tokens} tokens, got {grid}: try split='channels', which needs none")
        if not self._passes:
            self._passes = [_low_pass(length, self.cutoff).to(feature) for length in self.grid]

    def principal(self, feature: torch.Tensor) -> torch.Tensor:
        if not self._passes:
            raise StackError("nothing to project on: no full step has run in this request")
        part, before = feature, len(feature)
        for low in self._passes:
            part = low @ part.reshape(before, len(low), -1)
            before *= len(low)
        return part.reshape(feature.shape)

    def denoised(self, difference: torch.Tensor, variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One gain for each of the two bands."""
        principal = self.principal(difference)
        share = math.prod(math.ceil(self.cutoff * length) / length for length in self.grid)
        return shrunk(principal, variance, share), shrunk(difference - principal, variance, 1 - share)


def _low_pass(length: int, cutoff: float) -> torch.Tensor:
    """Projection (length, length) on the lowest frequencies of the orthonormal cosine transform (DCT-II)."""
    keep = max(1, math.ceil(cutoff * length))
    places = torch.arange(length, dtype=torch.float64)
    waves = torch.cos(math.pi / length * (places + 0.5) * torch.arange(keep, dtype=torch.float64)[:, None])
    waves /= waves.norm(dim=1, keepdim=True)
    return waves.mT @ waves


@dataclass(frozen=True)
class SplitPolicy(Options):
    """Which split a cache uses. Its fields are the split's own choices.

    Attributes:
        name: as options and recipes have it.
        needs_grid: it looks at the grid of the tokens.
    """

    name: ClassVar[str]
    needs_grid: ClassVar[bool] = False

    @property
    def found(self) -> Bases | None:
        """Bases that were found offline."""
        return None

    @property
    @abstractmethod
    def words(self) -> str:
        """What is principal, for `explain()`."""

    @abstractmethod
    def new(self, grid: tuple[int, ...] = (), key: str = "", ranks: Ranks = ALONE) -> Split:
        """A split for one feature of one request; see `Policy.new_predictor`."""


@dataclass(frozen=True)
class ChannelSplit(SplitPolicy):
    """SVD-Cache's: leading directions of the channels, see `ChannelBasis`.

    Attributes:
        energy: share of the squared norm that the principal part holds.
        basis_life: "request" or "warm".
        bases: found offline by `Stack.fit_bases`; None finds them in each request.

    Raises:
        StackError: a value outside its range.
    """

    name: ClassVar[str] = "channels"

    energy: float = 0.85
    basis_life: str = "request"
    bases: Bases | None = None

    def check_values(self) -> None:
        if not 0 < self.energy <= 1:
            raise StackError(f"energy must be in (0, 1], got {self.energy}")
        ChannelBasis(self.energy, self.basis_life)  # checks its own values

    @property
    def found(self) -> Bases | None:
        return self.bases

    @property
    def words(self) -> str:
        return f"energy {self.energy:g}"

    def new(self, grid: tuple[int, ...] = (), key: str = "", ranks: Ranks = ALONE) -> Split:
        return ChannelBasis(self.energy, self.basis_life, self.bases.of(key) if self.bases and key else None, ranks)


@dataclass(frozen=True)
class BandSplit(SplitPolicy):
    """FreqCa's: the lowest cosines over the tokens, see `TokenBand`.

    Attributes:
        cutoff: share of the band that is principal.

    Raises:
        StackError: a value outside its range.
    """

    name: ClassVar[str] = "band"
    needs_grid: ClassVar[bool] = True

    cutoff: float = 0.1

    def check_values(self) -> None:
        TokenBand(self.cutoff)  # checks its own value

    @property
    def words(self) -> str:
        return f"lowest {self.cutoff:.0%} of the token band"

    def new(self, grid: tuple[int, ...] = (), key: str = "", ranks: Ranks = ALONE) -> Split:
        return TokenBand(self.cutoff, grid)


SPLITS: dict[str, type[SplitPolicy]] = {split.name: split for split in (ChannelSplit, BandSplit)}
