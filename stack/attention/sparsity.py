"""Which calls are sparse, decided from numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..compat.rules.sparse import MARGIN, MASKED_ATTENTION
from ..runtime.step import StepContext
from .cost import Rate, densest, predicted_speedup, worth_it
from .maps import FINEST, Grid, cut
from .token_order import AUTO, BY_HEAD, MANY_STEPS, MANY_TOKENS, RASTER

OUTSIDE, FIRST, LAST = "outside a request", "first steps", "last step"
MASKED, NO_TEXT_LENGTH = f"attention mask ({MASKED_ATTENTION.tag})", "text length unknown"
TOO_DENSE = "no map within the budget pays"

DEVICES_OWN, SPARGE = "auto", "sparge"
DENSE_LAYER = (1.0, 1.0, 1.0)


def third(step: int, steps: int) -> int:
    """Which third of a schedule a step lies in: 0, 1 or 2."""
    return 3 * step // steps


@dataclass(frozen=True)
class SparsityPolicy:
    """What the user asked for.

    Attributes:
        keep: share of image key blocks that a query block attends to; with a budget, at least.
        block: query block in tokens, None for the device's best.
        first, last: dense steps at both ends; `first` None is a tenth of the schedule, at least one.
        even_if_slower: do not ask the cost rule.
        max_mass, max_error: budgets of dropped softmax mass and of the error of outputs; at most one is given, and
            where none is, `keep` decides.
        layers: shares of image key blocks by path of the layer, for each third of the schedule, in place of all of
            these; layers that are not named are dense.
        producer: who says which blocks hold how much of it, one of `producers.PRODUCERS`.
        kernel: who computes by the map: `DEVICES_OWN` or `SPARGE`.
        order: in which tokens are cut into blocks, one of `token_order.ORDERS`, "by_head" or "auto".
    """

    keep: float
    block: int | None = None
    first: int | None = None
    last: int = 1
    even_if_slower: bool = False
    max_mass: float | None = None
    max_error: float | None = None
    producer: str = "sampled"
    layers: Mapping[str, Sequence[float]] | None = None
    order: str = AUTO
    kernel: str = DEVICES_OWN

    def order_of(self, image: int, steps: int) -> str:
        """The order of a latent of so many tokens in a schedule of so many steps: what is asked for, or what pays."""
        if self.order != AUTO:
            return self.order
        return BY_HEAD if image >= MANY_TOKENS and self.sparse_steps(steps) >= MANY_STEPS else RASTER

    @property
    def budget(self) -> bool:
        """Whether the density follows from a budget, and is known only once a map is made."""
        return self.layers is None and (self.max_mass is not None or self.max_error is not None)

    @property
    def _measures_error(self) -> bool:
        return self.layers is None and self.max_error is not None

    def of_call(self, layer: str, context: StepContext) -> SparsityPolicy:
        """The policy of one layer in one step: with a share of its own where a table has one for it."""
        return self.of_third(layer, third(context.at, context.whole))

    def of_third(self, layer: str, part: int) -> SparsityPolicy:
        """The policy of one layer in one third of the schedule."""
        if self.layers is None:
            return self
        keep = self.layers.get(layer, DENSE_LAYER)[part]
        return replace(self, keep=keep, max_mass=None, max_error=None, layers=None)

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

    def dense_shape(self, image: int, text: int, rate: Rate) -> str:
        """Why these shapes are dense, or "" where sparse attention pays."""
        good, why = worth_it(image, text, self.keep, self.block, rate, self._measures_error)
        # With no block to drop there is nothing to skip, at any price.
        nothing = self.keep == 1 or self.grid(image, text, rate.device).density(self.keep) == 1
        return "" if good or (self.even_if_slower and not nothing) else why

    def densest(self, rate: Rate) -> float:
        """The share of a head's scores beyond which a map for a budget leaves the head dense."""
        return 1.0 if self.even_if_slower else densest(rate)

    def dense_map(self, grid: Grid, density: float, rate: Rate) -> str:
        """Why a map that was made for a budget is not used, or "".

        Args:
            density: mean share of a head's scores, at most `densest`: a dense head takes no longer.
        """
        if self.even_if_slower:
            return TOO_DENSE if density == 1 else ""
        gain = predicted_speedup(grid, density, rate, self._measures_error)
        return TOO_DENSE if gain < MARGIN else ""

    def grid(self, image: int, text: int, device: str, text_last: bool = False) -> Grid:
        """How such a sequence is cut; as finely as can be where only that leaves something to drop."""
        grid = cut(image, text, self.block, device, text_last)
        if self.even_if_slower and self.block is None and grid.density(self.keep) == 1:
            return cut(image, text, FINEST, device, text_last)
        return grid
