"""Block maps that are kept from full steps and used on the steps between, as long as they are still good.

A map is made by pooled scores and says nothing of what it leaves out. So whenever one is to be used again, the softmax
mass outside its blocks is computed exactly for a few queries (`mass.py`) and held against what it was for the same
queries when the map was made. Maps of heads and samples where it has grown by more than is allowed are made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from ..runtime.stamp import Conditions, Stamp
from ..runtime.step_clock import Clock, StepContext
from .maps import Grid, block_map, ranked_blocks
from .mass import dropped_mass, sampled_queries
from .sparsity import EVERY, SparsityPolicy, Tally


@dataclass(frozen=True)
class Look:
    """What a map is made from and judged by: some samples of one attention call.

    Attributes:
        q, k: (B, S, H, D).
        seen: (B, S), False at hidden keys; None where all are seen.
    """

    q: torch.Tensor
    k: torch.Tensor
    grid: Grid
    seen: torch.Tensor | None

    def taken(self, places: Sequence[int]) -> Look:
        """The same of some samples."""
        if len(places) == len(self.q):
            return self
        rows = list(places)
        return Look(self.q[rows], self.k[rows], self.grid, None if self.seen is None else self.seen[rows])


@dataclass
class _Map:
    """One sample's map: (H, rows, kept) blocks, the mass (H,) it dropped when it was made, and when that was."""

    indices: torch.Tensor
    mass: torch.Tensor
    step: int


@dataclass
class Held:
    """The maps of one layer and guidance branch, by sample of the batch."""

    stamp: Stamp
    grid: Grid
    queries: torch.Tensor
    maps: dict[int, _Map] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Samples of an attention call that are treated alike.

    Attributes:
        places: in the call.
        rows: in the batch of the request.
        anchor: whether this is a full step of theirs.
        held: the maps of their layer; None where none may be reused.
        fresh: whether their maps are made, not reused.
    """

    places: tuple[int, ...]
    rows: tuple[int, ...]
    anchor: bool
    held: Held | None
    fresh: bool


class Maps:
    """Makes the maps of all attention layers, or reuses them.

    Args:
        conditions: what the current call's features depend on, for stamps.
    """

    def __init__(
        self, policy: SparsityPolicy, clock: Clock, tally: Tally, conditions: Callable[[], Conditions]
    ) -> None:
        self.policy, self.clock, self.tally, self._conditions = policy, clock, tally, conditions
        self._held: dict[tuple[int, str], Held] = {}
        self._stamped: Stamp | None = None
        self._at: StepContext | None = None

    @property
    def bytes(self) -> int:
        """Memory of the device that is held, in bytes."""
        maps = [map_ for held in self._held.values() for map_ in held.maps.values()]
        return sum(map_.indices.nbytes + map_.mass.nbytes for map_ in maps)

    def reset(self) -> None:
        """Forget every request."""
        self._held.clear()
        self._stamped = self._at = None
        self.tally.reset()

    def groups(self, layer: int, hidden: torch.Tensor, grid: Grid) -> list[Group]:
        """The samples of a call of this layer, given its hidden states (B, N, D), by what is to be done with them."""
        active_set, rows = self.clock.active_set, tuple(range(len(hidden)))
        if active_set.rows is not None and len(active_set.rows) == len(rows):
            rows = active_set.rows
        held = self._current(layer, hidden, grid)
        told: dict[tuple[bool, bool], list[int]] = {}
        for place, row in enumerate(rows):
            fresh = held is None or row not in held.maps or (not active_set.cached and self._old(held.maps[row]))
            anchor = active_set.is_full(row) if active_set.cached else fresh
            told.setdefault((anchor, fresh or anchor), []).append(place)
        return [
            Group(tuple(places), tuple(rows[place] for place in places), anchor, held, fresh)
            for (anchor, fresh), places in told.items()
        ]

    def of(self, look: Look, group: Group) -> torch.Tensor:
        """The map (B, H, rows, kept) of the samples of a group, which `look` holds and no others."""
        if group.held is None:
            self.tally.maps.made += len(look.q) * look.q.shape[2]
            return block_map(look.q, look.k, look.grid, self.policy.kept(group.anchor))
        return self._made(look, group, group.held) if group.fresh else self._reused(look, group, group.held)

    def keep(self, look: Look, group: Group) -> None:
        """Make the maps of a full step that runs dense, for the steps behind it."""
        if group.held is not None:
            self._made(look, group, group.held)

    def _made(self, look: Look, group: Group, held: Held) -> torch.Tensor:
        policy, grid = self.policy, look.grid
        ranked = ranked_blocks(look.q, look.k, grid, policy.kept(group.anchor))
        later = ranked[..., : grid.kept(policy.keep)].sort(-1).values
        mass = dropped_mass(look.q, look.k, later, grid, held.queries, look.seen).mean(-1)
        for row, indices, dropped in zip(group.rows, later, mass, strict=True):
            held.maps[row] = _Map(indices, dropped, self._tick.step)
        self.tally.maps.made += mass.numel()
        return ranked.sort(-1).values

    def _reused(self, look: Look, group: Group, held: Held) -> torch.Tensor:
        maps, grid = [held.maps[row] for row in group.rows], look.grid
        indices, before = torch.stack([m.indices for m in maps]), torch.stack([m.mass for m in maps])
        mass = dropped_mass(look.q, look.k, indices, grid, held.queries, look.seen).mean(-1)
        over = mass > before + self.policy.reuse
        # Waiting for an accelerator to say whether new maps are needed costs more than making them.
        if not over.is_cpu or over.any():
            fresh = block_map(look.q, look.k, grid, self.policy.keep)
            better = dropped_mass(look.q, look.k, fresh, grid, held.queries, look.seen).mean(-1)
            indices = torch.where(over[..., None, None], fresh, indices)
            mass = torch.where(over, better, mass)
            before = torch.where(over, better, before)
            for map_, now, dropped in zip(maps, indices, before, strict=True):
                map_.indices, map_.mass = now, dropped
        self.tally.maps.looked(mass, over)
        return indices

    def _old(self, map_: _Map) -> bool:
        return self._tick.step - map_.step >= EVERY

    def _current(self, layer: int, hidden: torch.Tensor, grid: Grid) -> Held | None:
        """The layer's maps, under the present conditions; None where nothing may be reused."""
        # Of some tokens only, or of samples that nobody has named, a map is good for this call alone.
        active_set = self.clock.active_set
        named = self._tick.shape[0] if active_set.rows is None else len(active_set.rows)
        if not self.policy.reuse or not active_set.whole or named != len(hidden):
            return None
        key, stamp = (layer, self._tick.branch), self._stamp(hidden)
        held = self._held.get(key)
        if held is not None and held.stamp == stamp and held.grid == grid:
            return held
        if held is not None and held.stamp.request == stamp.request:
            self.tally.maps.dropped += 1
        if any(other.stamp.request != stamp.request for other in self._held.values()):
            self._held.clear()
        self._held[key] = Held(stamp, grid, sampled_queries(grid, layer, hidden.device))
        return self._held[key]

    def _stamp(self, hidden: torch.Tensor) -> Stamp:
        tick = self._tick
        if self._at is not tick or self._stamped is None:  # the same for all layers of a denoiser call
            of, schedule = hidden.dtype, self.clock.sigma_schedule
            self._at = tick
            self._stamped = Stamp(
                tick.request, tick.branch, self._conditions(), schedule, tick.shape, of, hidden.device
            )
        return replace(self._stamped, dtype=hidden.dtype, device=hidden.device)

    @property
    def _tick(self) -> StepContext:
        assert self.clock.tick is not None, "outside of a request every call is dense"
        return self.clock.tick


def parts(groups: Sequence[Group], look: Look) -> Iterator[tuple[Group, Look]]:
    """Each group, and what its samples' maps are made from."""
    for group in groups:
        yield group, look.taken(group.places)
