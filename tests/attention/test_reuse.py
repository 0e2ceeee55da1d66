"""Maps that are kept: reused where nothing changed, made anew where it did, and never where they do not belong."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from stack.attention.maps import Grid, block_map
from stack.attention.mass import dropped_mass
from stack.attention.reuse import Look, Maps, parts
from stack.attention.sparsity import EVERY, SparsityPolicy, Tally
from stack.models.schedule import uniform
from stack.runtime.stamp import Conditions
from stack.runtime.step_clock import Clock

GRID = Grid(text=3, image=512, key=64, group=2)
HEADS, STEPS = 2, 20
LATENT = (2, 512, 12)


def look(seed: int = 0, batch: int = 2) -> Look:
    """Queries and keys whose directions go together block by block, so that a map matters."""
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(batch, GRID.tokens, HEADS, 16, generator=generator) for _ in range(2))
    likes = torch.randn(batch, 8, 1, HEADS, 16, generator=generator).expand(-1, -1, 64, -1, -1).flatten(1, 2)
    q[:, 3:] += 2 * likes
    k[:, 3:] += 2 * likes.roll(64 * (3 + seed), 1)
    return Look(q, k, GRID, None)


@dataclass
class Rig:
    """One attention layer after another, called step by step."""

    policy: SparsityPolicy = field(default_factory=lambda: SparsityPolicy(0.5, reuse=0.02))
    weights: int = 0

    def __post_init__(self) -> None:
        self.clock = Clock(uniform(STEPS))
        self.tally = Tally(self.clock)
        self.maps = Maps(self.policy, self.clock, self.tally, lambda: Conditions(weights=self.weights))

    def step(self, number: int, shape: tuple[int, ...] = LATENT, branch: str = "main") -> None:
        self.clock.branch = branch
        self.clock.advance(self.clock.sigma_schedule.sigmas[number], shape)
        self.tally.begin()

    def call(self, seen: Look, layer: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The map that a call of this layer attends by."""
        hidden = torch.empty(len(seen.q), 1, 1, dtype=dtype, device=seen.q.device)
        groups = self.maps.groups(layer, hidden, seen.grid)
        out: dict[int, torch.Tensor] = {}
        for group, part in parts(groups, seen):
            out |= dict(zip(group.places, self.maps.of(part, group), strict=True))
        return torch.stack([out[place] for place in range(len(seen.q))])

    @property
    def counts(self) -> tuple[int, int, int]:
        maps = self.tally.maps
        return maps.made, maps.reused, maps.renewed


def fresh(seen: Look, keep: float = 0.5) -> torch.Tensor:
    return block_map(seen.q, seen.k, seen.grid, keep)


def test_on_the_same_input_a_reused_map_is_a_recomputed_one() -> None:
    rig, seen = Rig(), look()
    for number in range(3):
        rig.step(number)
        assert torch.equal(rig.call(seen), fresh(seen))
    assert rig.counts == (2 * HEADS, 4 * HEADS, 0)
    figures = rig.tally.figures()
    exact = dropped_mass(seen.q, seen.k, fresh(seen), GRID, torch.arange(3, 515)).mean()
    assert figures["dropped_mass"] == pytest.approx(exact.item(), abs=0.05)
    assert figures["dropped_mass_worst"] >= figures["dropped_mass"] > 0.01


def test_a_little_change_reuses_the_map_it_would_not_have_made() -> None:
    rig, seen = Rig(), look()
    rig.step(0)
    first = rig.call(seen)
    near = Look(seen.q + 0.3 * look(1).q, seen.k, GRID, None)
    rig.step(1)
    assert torch.equal(rig.call(near), first) and not torch.equal(fresh(near), first)
    assert rig.counts == (2 * HEADS, 2 * HEADS, 0)


def test_a_change_beyond_the_budget_makes_the_map_anew_where_it_happened() -> None:
    """Head 1 of sample 0 sees something else; the others keep what they have."""
    rig, seen = Rig(), look()
    rig.step(0)
    first = rig.call(seen)
    k = seen.k.clone()
    k[0, :, 1] = look(5).k[0, :, 1]
    changed = Look(seen.q, k, GRID, None)
    rig.step(1)
    second = rig.call(changed)
    assert rig.counts == (2 * HEADS, 2 * HEADS - 1, 1)
    assert torch.equal(second[0, 1], fresh(changed)[0, 1]) and not torch.equal(second[0, 1], first[0, 1])
    assert torch.equal(second[1], first[1]) and torch.equal(second[0, 0], first[0, 0])
    rig.step(2)
    assert torch.equal(rig.call(changed), second), "what was made anew is what the next look is held against"
    assert rig.counts == (2 * HEADS, 4 * HEADS - 1, 1)


def test_what_is_allowed_is_what_decides() -> None:
    seen, other = look(), look(9)
    renewed = []
    for allowed in (0.001, 0.2, 0.99):
        rig = Rig(SparsityPolicy(0.5, reuse=allowed))
        rig.step(0)
        rig.call(seen)
        rig.step(1)
        rig.call(other)
        renewed.append(rig.counts[2])
    assert renewed == sorted(renewed, reverse=True) and renewed[0] == 2 * HEADS and renewed[-1] == 0


def test_an_accelerator_is_never_waited_for() -> None:
    """Reading a number from a meta tensor raises, as it blocks on a GPU."""
    rig, seen = Rig(), look()
    there = Look(seen.q.to("meta"), seen.k.to("meta"), GRID, None)
    for number in range(3):
        rig.step(number)
        assert rig.call(there).shape == fresh(seen).shape
    assert rig.tally.maps.made == 2 * HEADS and len(rig.tally.maps._over) == 2
    with pytest.raises(RuntimeError, match="meta tensors"):
        _ = rig.tally.maps.renewed


def test_off_means_off() -> None:
    rig, seen = Rig(SparsityPolicy(0.5)), look()
    for number in range(2):
        rig.step(number)
        rig.call(seen)
    assert rig.counts == (4 * HEADS, 0, 0) and rig.maps.bytes == 0


def test_without_a_cache_a_map_is_made_anew_after_some_steps() -> None:
    rig, seen = Rig(SparsityPolicy(0.25, reuse=0.5, anchor_keep=0.75)), look()
    kept = []
    for number in range(2 * EVERY):
        rig.step(number)
        kept.append(rig.call(seen).shape[-1])
    assert kept == ([6] + [2] * (EVERY - 1)) * 2
    assert SparsityPolicy(0.5, reuse=0.1).anchors(STEPS) == -(-SparsityPolicy(0.5).sparse_steps(STEPS) // EVERY)


def test_with_a_cache_its_full_steps_make_the_maps_of_whoever_has_one() -> None:
    """Sample 0 is on a full step, sample 1 is not: its map stays, and keeps fewer blocks."""
    rig, seen, other = Rig(SparsityPolicy(0.25, reuse=0.9, anchor_keep=0.25)), look(), look(4)
    for number, full in enumerate(((True, True), (False, True), (False, False), (False,))):
        rig.step(number)
        rig.clock.active_set.decide(full)
        now = rig.call(seen if number == 0 else other)
        assert torch.equal(now[0], fresh(seen, 0.25)[0])
        assert torch.equal(now[1], fresh(seen if number == 0 else other, 0.25)[1])
    assert rig.counts == (3 * HEADS, 5 * HEADS, 0)


def test_anchors_of_some_samples_are_denser_for_those_alone() -> None:
    rig = Rig(SparsityPolicy(0.25, anchor_keep=0.75))
    rig.step(0)
    rig.clock.active_set.decide((True, False))
    groups = rig.maps.groups(0, torch.empty(2, 1, 1), GRID)
    kept = {g.places: (g.anchor, rig.maps.of(part, g).shape[-1]) for g, part in parts(groups, look())}
    assert kept == {(0,): (True, 6), (1,): (False, 2)}
    rig.clock.active_set.wait()
    assert [g.anchor for g in rig.maps.groups(0, torch.empty(2, 1, 1), GRID)] == [False]


def test_some_samples_of_the_batch_find_their_own_maps() -> None:
    rig, seen = Rig(), look()
    rig.step(0)
    rig.call(seen)
    rig.step(1)
    with rig.clock.active_set.part([1]):
        assert torch.equal(rig.call(look().taken([1]))[0], fresh(seen)[1])
    assert rig.counts == (2 * HEADS, HEADS, 0)


@pytest.mark.parametrize("change", ["request", "branch", "layer", "shape", "weights", "dtype", "grid"])
def test_other_conditions_never_reuse(change: str) -> None:
    rig, seen = Rig(), look()
    rig.step(0)
    rig.call(seen)
    shape, branch = ((2, 256, 12) if change == "shape" else LATENT), "other" if change == "branch" else "main"
    rig.weights = int(change == "weights")
    rig.step(0 if change in ("request", "branch") else 1, shape, branch)
    if change == "grid":
        seen = Look(seen.q, seen.k, Grid(3, 512, 64, 1), None)
    rig.call(seen, int(change == "layer"), torch.bfloat16 if change == "dtype" else torch.float32)
    assert rig.tally.maps.reused == 0
    assert rig.tally.maps.dropped == int(change in ("weights", "dtype", "grid"))
    assert len(rig.maps._held) == (2 if change in ("branch", "layer") else 1)


@pytest.mark.parametrize("why", ["some tokens", "samples that nobody named"])
def test_a_map_of_something_else_is_neither_kept_nor_replaced(why: str) -> None:
    rig, seen = Rig(), look()
    rig.step(0)
    first = rig.call(seen)
    rig.step(1)
    if why == "some tokens":
        with rig.clock.active_set.part(None, whole=False):
            rig.call(look(7))
    else:
        rig.call(look(7).taken([1]))
    assert rig.tally.maps.reused == 0
    rig.step(2)
    assert torch.equal(rig.call(seen), first) and rig.tally.maps.reused == 2 * HEADS


def test_state_is_counted_and_let_go() -> None:
    rig = Rig()
    rig.step(0)
    rig.call(look())
    assert rig.maps.bytes == 2 * (HEADS * GRID.rows * 4 * 8 + HEADS * 4)
    rig.maps.reset()
    assert rig.maps.bytes == 0 and rig.counts == (0, 0, 0)
