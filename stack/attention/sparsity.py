"""Which calls are sparse, decided from numbers, and the tally of what they were."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ..compat.rules.sparse import MASKED_ATTENTION
from ..runtime.step import StepContext
from ..runtime.step_clock import Clock
from .cost import worth_it
from .maps import FINEST, Grid, cut

OUTSIDE, FIRST, LAST = "outside a request", "first steps", "last step"
MASKED, NO_TEXT_LENGTH = f"attention mask ({MASKED_ATTENTION.tag})", "text length unknown"


@dataclass(frozen=True)
class SparsityPolicy:
    """What the user asked for.

    Attributes:
        keep: share of image key blocks that a query block attends to.
        block: query block in tokens, None for the device's best.
        first, last: dense steps at both ends; `first` None is a tenth of the schedule, at least one.
        even_if_slower: do not ask the cost rule.
    """

    keep: float
    block: int | None = None
    first: int | None = None
    last: int = 1
    even_if_slower: bool = False

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

    def grid(self, image: int, text: int, device: str, text_last: bool = False) -> Grid:
        """How such a sequence is cut; as finely as can be where only that leaves something to drop."""
        grid = cut(image, text, self.block, device, text_last)
        if self.even_if_slower and self.block is None and grid.density(self.keep) == 1:
            return cut(image, text, FINEST, device, text_last)
        return grid


@dataclass
class Tally:
    """Attention calls of the current pipeline call. All figures follow from shapes: nothing is read from the device."""

    clock: Clock
    sparse: int = 0
    dense: Counter[str] = field(default_factory=Counter)
    computed: float = 0.0
    _page: int = -1

    def note(self, reason: str, density: float = 1.0) -> None:
        """One attention call: sparse where `reason` is empty, with its share of computed scores."""
        self.begin()
        self.computed += density
        if reason:
            self.dense[reason] += 1
        else:
            self.sparse += 1

    def begin(self) -> None:
        """An attention call begins; a new pipeline call starts a new page."""
        context = self.clock.context
        if context is not None and context.page != self._page:
            self.reset()
            self._page = context.page

    def reset(self) -> None:
        """Forget the request."""
        self.sparse, self.computed, self._page = 0, 0.0, -1
        self.dense.clear()

    @property
    def calls(self) -> int:
        """Attention calls so far."""
        return self.sparse + self.dense.total()

    def figures(self) -> dict[str, Any]:
        """Sparse and dense calls, reasons, and the mean share of scores computed over all of them."""
        density = self.computed / self.calls if self.calls else None
        return {"sparse_calls": self.sparse, "dense_calls": dict(self.dense), "density": density}
