"""Which calls are sparse, decided from numbers, and the tally of what they were."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from ..bounds import dropped_mass_bound
from ..compat.rules.sparse import MARGIN, MASKED_ATTENTION
from ..runtime.step import StepContext
from ..runtime.step_clock import Clock
from .cost import predicted_speedup, worth_it
from .maps import FINEST, Grid, cut

OUTSIDE, FIRST, LAST = "outside a request", "first steps", "last step"
MASKED, NO_TEXT_LENGTH = f"attention mask ({MASKED_ATTENTION.tag})", "text length unknown"
TOO_DENSE = "no map within max_mass pays"


@dataclass(frozen=True)
class SparsityPolicy:
    """What the user asked for.

    Attributes:
        keep: share of image key blocks that a query block attends to; with `max_mass`, at least.
        block: query block in tokens, None for the device's best.
        first, last: dense steps at both ends; `first` None is a tenth of the schedule, at least one.
        even_if_slower: do not ask the cost rule.
        max_mass: share of the softmax mass that may be dropped, None where `keep` decides.
        producer: who says which blocks hold how much of it, one of `producers.PRODUCERS`.
    """

    keep: float
    block: int | None = None
    first: int | None = None
    last: int = 1
    even_if_slower: bool = False
    max_mass: float | None = None
    producer: str = "sampled"

    def first_steps(self, steps: int) -> int:
        """Dense steps at the start: they fix the layout, and an error there stays in the picture."""
        return max(1, round(0.1 * steps)) if self.first is None else self.first

    def sparse_steps(self, steps: int) -> int:
        """Steps that may be sparse."""
        return max(0, steps - self.first_steps(steps) - self.last)

    def dense_step(self, context: StepContext | None) -> str:
        """Why this step is dense, or "" where it may be sparse."""
        if context is None:
            return OUTSIDE
        if context.at < self.first_steps(context.whole):
            return FIRST
        return LAST if context.at >= context.whole - self.last else ""

    def dense_shape(self, image: int, text: int, heads: int, head_dim: int, device: str) -> str:
        """Why these shapes are dense, or "" where sparse attention pays."""
        good, why = worth_it(image, text, self.keep, self.block, heads, head_dim, device)
        # With no block to drop there is nothing to skip, at any price.
        nothing = self.keep == 1 or self.grid(image, text, device).density(self.keep) == 1
        return "" if good or (self.even_if_slower and not nothing) else why

    def dense_map(self, grid: Grid, density: float, heads: int, head_dim: int, device: str) -> str:
        """Why a map that was made for a budget of mass is not used, or "". `density` is its share of the scores."""
        if density == 1 or predicted_speedup(grid, density, heads, head_dim, device) < MARGIN:
            return "" if self.even_if_slower and density < 1 else TOO_DENSE
        return ""

    def grid(self, image: int, text: int, device: str, text_last: bool = False) -> Grid:
        """How such a sequence is cut; as finely as can be where only that leaves something to drop."""
        grid = cut(image, text, self.block, device, text_last)
        if self.even_if_slower and self.block is None and grid.density(self.keep) == 1:
            return cut(image, text, FINEST, device, text_last)
        return grid


@dataclass
class Tally:
    """Attention calls of the current pipeline call. Nothing is read from the device before `figures` is asked for.

    Attributes:
        taken: calls that the back end computed.
        left: calls that it left to others, by reason.
        computed, dropped: sums over calls of the share of scores computed and, over those taken, of the mass left out.
    """

    clock: Clock
    taken: int = 0
    left: Counter[str] = field(default_factory=Counter)
    computed: float | torch.Tensor = 0.0
    dropped: float | torch.Tensor | None = None
    _page: int = -1

    def note(self, reason: str, density: float | torch.Tensor = 1.0, dropped: torch.Tensor | None = None) -> None:
        """One attention call: taken where `reason` is empty, with its shares of computed scores and dropped mass."""
        self.begin()
        self.computed = self.computed + density
        if dropped is not None:
            self.dropped = dropped + (0.0 if self.dropped is None else self.dropped)
        if reason:
            self.left[reason] += 1
        else:
            self.taken += 1

    def begin(self) -> None:
        """An attention call begins; a new pipeline call starts a new page."""
        context = self.clock.context
        if context is not None and context.page != self._page:
            self.reset()
            self._page = context.page

    def reset(self) -> None:
        """Forget the request."""
        self.taken, self.computed, self.dropped, self._page = 0, 0.0, None, -1
        self.left.clear()

    @property
    def calls(self) -> int:
        """Attention calls so far."""
        return self.taken + self.left.total()

    def figures(self) -> dict[str, Any]:
        """Sparse and dense calls, reasons, and the mean share of scores computed over all of them.

        Also the mean share of the softmax mass that sparse calls left out, None where the producer of their maps does
        not measure it, and the bound on the error of an output that follows, in units of the spread of its values.
        """
        dropped = None if self.dropped is None else float(self.dropped) / self.taken
        return {
            "sparse_calls": self.taken,
            "dense_calls": dict(self.left),
            "density": float(self.computed) / self.calls if self.calls else None,
            "dropped_mass": dropped,
            "error_bound": None if dropped is None else dropped_mass_bound(dropped, 1.0),
        }
