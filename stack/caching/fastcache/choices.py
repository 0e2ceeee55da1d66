"""FastCache's choices (arXiv 2505.20353)."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import StackError, choose
from ...core.validate import NotNegative
from ..options import Options
from .maps import APPROXIMATIONS, LinearMaps

PARTS = ("gate", "tokens", "merge")
RESIDUAL = "residual"
KNOWN = (RESIDUAL, *APPROXIMATIONS)


@dataclass(frozen=True)
class FastCacheChoices(Options):
    """What of FastCache is on, and how far it goes.

    Attributes:
        parts: "gate" (blocks whose input has hardly changed become linear maps), "tokens" (so do all blocks for tokens
            that hardly move), "merge" (the tokens that run are merged).
        threshold: of the gate: the mean relative error of a block's output that a fitted map may cost, which sets each
            block's scale. Under "residual" the largest relative change of a block's input.
        alpha: significance level of the gate.
        adaptive: coefficients b0..b3 of the paper's second threshold; none leaves it out.
        moving: a token runs when its saliency is at least this many times the mean; 0 runs them all.
        merged: share of the running tokens that is left after merging.
        neighbours, motion: K and lambda of the merging.
        approximation: "static" takes x W + b for what a block adds, as published; "delta" takes what it added when it
            last ran, moved by (x - x_then) W with a W fitted on such changes, and compares with that input instead of
            the previous step's; "residual" takes what it added then as it was, and needs nothing fitted.
        maps: the fitted maps.

    Raises:
        StackError: a value outside its range.
    """

    parts: tuple[str, ...] = PARTS
    threshold: NotNegative = 0.0
    alpha: float = 0.05
    adaptive: tuple[float, ...] = ()
    moving: float = 0.5
    merged: float = 0.9
    neighbours: int = 5
    motion: float = 1.0
    approximation: str = "static"
    maps: LinearMaps | None = None

    def check_values(self) -> None:
        for part in self.parts:
            if part not in PARTS:
                raise choose("part of FastCache", part, PARTS)
        if self.approximation not in KNOWN:
            raise choose("approximation of FastCache", self.approximation, KNOWN)
        if not 0 < self.alpha < 1 or not 0 < self.merged <= 1:
            raise StackError(f"expected alpha in (0, 1) and merged in (0, 1], got {self.alpha} and {self.merged}")
        if self.moving < 0 or self.neighbours < 1 or self.motion < 0:
            given = f"{self.moving}, {self.neighbours} and {self.motion}"
            raise StackError(f"expected moving and motion of at least 0 and neighbours of at least 1, got {given}")
        if len(self.adaptive) not in (0, 4):
            raise StackError(f"adaptive must be (b0, b1, b2, b3) or empty, got {self.adaptive}")

    @property
    def needs_maps(self) -> bool:
        """Whether anything is replaced by a linear map."""
        return self.approximation != RESIDUAL and bool({"gate", "tokens"} & set(self.parts))

    @property
    def fewer_tokens(self) -> bool:
        """Whether blocks are run on fewer tokens than there are."""
        return bool({"tokens", "merge"} & set(self.parts))
