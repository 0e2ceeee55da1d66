"""Which calls are sparse, decided from numbers, and the tally of what they were."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch

from ..compat.rules.sparse import MASKED_ATTENTION
from ..runtime.step_clock import Clock, StepContext
from .cost import worth_it
from .maps import FINEST, Grid, cut

OUTSIDE, FIRST, LAST = "outside a request", "first steps", "last step"
MASKED, NO_TEXT_LENGTH = f"attention mask ({MASKED_ATTENTION.tag})", "text length unknown"
ANCHOR = "full step"
# Where no cache has full steps of its own, a map is made anew after so many, whatever the estimate says. Estimates look
# at the mass, not at what became of the picture: on shapes-flux, 20 steps, maps made once and kept cost 0.6 dB, those
# made every 8 steps 0.4 dB, those made every 5 nothing (docs/sparse.md).
EVERY = 5


@dataclass(frozen=True)
class SparsityPolicy:
    """What the user asked for.

    Attributes:
        keep: share of image key blocks that a query block attends to.
        block: query block in tokens, None for the device's best.
        first, last: dense steps at both ends; `first` None is a tenth of the schedule, at least one.
        even_if_slower: do not ask the cost rule.
        anchor_keep: the same share on full steps, at least `keep`; None is `keep`.
        reuse: dropped mass by which a map may grow worse before it is made anew; 0 makes it in every call.
    """

    keep: float
    block: int | None = None
    first: int | None = None
    last: int = 1
    even_if_slower: bool = False
    anchor_keep: float | None = None
    reuse: float = 0.0

    def kept(self, anchor: bool) -> float:
        """The share of key blocks kept on a full step, or on another."""
        return self.keep if self.anchor_keep is None or not anchor else self.anchor_keep

    def first_steps(self, steps: int) -> int:
        """Dense steps at the start: they fix the layout, and an error there is carried through the whole picture."""
        return max(1, round(0.1 * steps)) if self.first is None else self.first

    def sparse_steps(self, steps: int) -> int:
        """Steps that may be sparse."""
        return max(0, steps - self.first_steps(steps) - self.last)

    def dense_step(self, tick: StepContext | None) -> str:
        """Why this step is dense, or "" where it may be sparse."""
        if tick is None:
            return OUTSIDE
        if tick.step < self.first_steps(tick.steps):
            return FIRST
        return LAST if tick.step >= tick.steps - self.last else ""

    def dense_shape(self, image: int, text: int, heads: int, head_dim: int, device: str, anchor: bool = False) -> str:
        """Why these shapes are dense, or "" where sparse attention pays; on a full step if `anchor`."""
        keep = self.kept(anchor)
        good, why = worth_it(image, text, keep, self.block, heads, head_dim, device)
        # With no block to drop there is nothing to skip, at any price.
        nothing = keep == 1 or self.grid(image, text, device).density(keep) == 1
        return "" if good or (self.even_if_slower and not nothing) else why

    def grid(self, image: int, text: int, device: str, text_last: bool = False) -> Grid:
        """How such a sequence is cut; as finely as can be where only that leaves something to drop."""
        grid = cut(image, text, self.block, device, text_last)
        if self.even_if_slower and self.block is None and grid.density(self.keep) == 1:
            return cut(image, text, FINEST, device, text_last)
        return grid

    def anchors(self, steps: int) -> int:
        """Sparse steps that are full ones, where no cache says otherwise."""
        sparse = self.sparse_steps(steps)
        return -(-sparse // EVERY) if self.reuse else sparse


@dataclass
class MapCount:
    """What became of the maps, counted per sample and head.

    Attributes:
        made: because none was there, or on a full step.
        dropped: layers whose maps were made under other conditions.
    """

    made: int = 0
    dropped: int = 0
    _mass: list[torch.Tensor] = field(default_factory=list)
    _over: list[torch.Tensor] = field(default_factory=list)

    def looked(self, mass: torch.Tensor, over: torch.Tensor) -> None:
        """Maps were looked at again. Both (B, H): which were too bad, and what those now in use drop."""
        self._mass.append(mass.flatten())
        self._over.append(over.flatten())

    @property
    def renewed(self) -> int:
        """Maps that dropped more than is allowed. Reads from the device."""
        return int(torch.cat(self._over).sum()) if self._over else 0

    @property
    def reused(self) -> int:
        """Maps that did not. Reads from the device."""
        return sum(over.numel() for over in self._over) - self.renewed

    def figures(self) -> dict[str, object]:
        """Counts, and the dropped mass over all looks; the device is read here and not before."""
        counts = {"maps_made": self.made, "maps_reused": self.reused, "maps_renewed": self.renewed}
        if not self._mass:
            return {**counts, "maps_dropped": self.dropped}
        mass = torch.cat(self._mass)
        return {
            **counts,
            "maps_dropped": self.dropped,
            "dropped_mass": float(mass.mean()),
            "dropped_mass_worst": float(mass.max()),
        }


@dataclass
class Tally:
    """Attention calls of the current request. All figures follow from shapes: nothing is read back from the device."""

    clock: Clock
    sparse: int = 0
    dense: Counter[str] = field(default_factory=Counter)
    computed: float = 0.0
    anchors: int = 0
    maps: MapCount = field(default_factory=MapCount)
    _request: int = -1

    def note(self, reason: str, density: float = 1.0, anchor: bool = False) -> None:
        """One attention call: sparse where `reason` is empty, with its share of computed scores."""
        self.begin()
        self.anchors += anchor
        self.computed += density
        if reason:
            self.dense[reason] += 1
        else:
            self.sparse += 1

    def begin(self) -> None:
        """An attention call begins; a new request starts a new page."""
        tick = self.clock.tick
        if tick is not None and tick.request != self._request:
            self.reset()
            self._request = tick.request

    def reset(self) -> None:
        """Forget the request."""
        self.sparse, self.computed, self.anchors, self._request = 0, 0.0, 0, -1
        self.dense.clear()
        self.maps = MapCount()

    @property
    def calls(self) -> int:
        """Attention calls so far."""
        return self.sparse + self.dense.total()

    def figures(self) -> dict[str, object]:
        """Sparse and dense calls, reasons, and the mean share of scores computed over all of them."""
        density = self.computed / self.calls if self.calls else None
        figures = {"sparse_calls": self.sparse, "dense_calls": dict(self.dense), "density": density}
        return {**figures, "anchor_calls": self.anchors, **self.maps.figures()}
