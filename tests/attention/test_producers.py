"""Shares of the softmax mass by each producer, and maps for a budget of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.attention import kernels, maps
from stack.attention.flex import Flex
from stack.attention.maps import Grid, computed_share, cut, dropped_mass, keep_mask, mass_map, with_dense_heads
from stack.attention.producers import PRODUCERS, losses, sampled, sliding_tile, window
from stack.attention.token_order import hilbert

from .mapped import block_map

grids = st.builds(
    Grid,
    text=st.integers(0, 9),
    image=st.integers(4, 90),
    key=st.sampled_from([2, 4, 64]),
    group=st.integers(1, 5),
    text_last=st.booleans(),
).filter(lambda grid: grid.blocks > 0)
seeds = st.integers(0, 999)
spreads = st.sampled_from([0.0, 1.0, 30.0])


def queries_and_keys(grid: Grid, seed: int, spread: float = 1.0, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(batch, grid.tokens, 3, 8, generator=generator) for _ in range(2))
    return spread * q, k


def own_blocks(grid: Grid) -> torch.Tensor:
    return torch.arange(grid.blocks) // grid.group == torch.arange(grid.rows)[:, None]


@settings(deadline=None, max_examples=40)
@given(grid=grids, seed=seeds, spread=spreads, producer=st.sampled_from(list(PRODUCERS)))
def test_shares_are_parts_of_one(grid: Grid, seed: int, spread: float, producer: str) -> None:
    shares = PRODUCERS[producer](*queries_and_keys(grid, seed, spread), grid)
    assert shares.shape == (2, 3, grid.rows, grid.blocks) and shares.dtype == torch.float32
    assert (shares >= 0).all() and (shares.sum(-1) <= 1 + 1e-5).all()


@settings(deadline=None, max_examples=25)
@given(grid=grids, seed=seeds)
def test_where_all_queries_of_a_block_agree_sampled_shares_are_exact(grid: Grid, seed: int) -> None:
    q, k = queries_and_keys(grid, seed)
    inside = q[:, grid.start : grid.end].unflatten(1, (-1, grid.key))
    q[:, grid.start : grid.end] = inside[:, :, :1].expand_as(inside).flatten(1, 2)
    weights = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / 8**0.5).softmax(-1)[:, :, grid.start : grid.end]
    blocks = weights[..., grid.start : grid.end].unflatten(-1, (grid.blocks, -1)).sum(-1)
    exact = torch.stack([part.mean(2) for part in blocks.split(grid.key * grid.group, 2)], 2)
    torch.testing.assert_close(sampled(q, k, grid), exact, atol=1e-5, rtol=0)


def test_samples_lie_in_all_columns_of_a_picture() -> None:
    """A picture of 64 x 32 pixels: queries of one column alone see block 0, and every column has its share."""
    grid = cut(image=2048, text=0, block=None, device="cpu")
    k = torch.zeros(1, 2048, 1, 8)
    k[:, :64] = 30.0
    found = []
    for column in range(32):
        q = torch.zeros(1, 2048, 1, 8)
        q[:, column::32] = 1.0
        found.append(float(sampled(q, k, grid)[..., 0].mean()))
    seen = [share > 1 / 32 + 1e-3 for share in found]  # with no query of that column in the sample, all is even
    assert sum(seen) == 32


def test_hidden_keys_have_no_mass() -> None:
    grid = Grid(text=6, image=64, key=8, group=2)
    q, k = queries_and_keys(grid, 0)
    seen = torch.ones(2, grid.tokens, dtype=torch.bool)
    seen[0, 2:6] = False
    without = Grid(text=2, image=64, key=8, group=2)
    rows = [0, 1, *range(6, grid.tokens)]
    expected = sampled(q[:1, rows], k[:1, rows], without)
    torch.testing.assert_close(sampled(q, k, grid, seen)[:1], expected)
    assert (sampled(q, k, grid, seen)[0].sum(-1) > sampled(q, k, grid)[0].sum(-1)).all()


@settings(deadline=None, max_examples=40)
@given(grid=grids, seed=seeds, spread=spreads, max_mass=st.sampled_from([1e-6, 0.05, 0.3, 0.999]))
def test_a_map_for_a_budget_is_the_sparsest_within_it(grid: Grid, seed: int, spread: float, max_mass: float) -> None:
    shares = sampled(*queries_and_keys(grid, seed, spread), grid)
    kept, own = mass_map(shares, grid, max_mass), own_blocks(grid)
    assert kept[..., own].all() and kept.any(-1).all(), "no row is empty"
    assert (dropped_mass(shares, kept) <= max_mass + 1e-6).all()
    cheapest = shares.masked_fill(~kept | own, 2.0).amin(-1)  # 2: nothing but the neighbourhood is left
    assert (dropped_mass(shares, kept) + cheapest > max_mass - 1e-6).all()


@settings(deadline=None, max_examples=25)
@given(grid=grids, seed=seeds, max_mass=st.sampled_from([0.05, 0.3, 0.9]))
def test_the_computed_share_is_that_of_the_mask(grid: Grid, seed: int, max_mass: float) -> None:
    kept = mass_map(sampled(*queries_and_keys(grid, seed), grid), grid, max_mass)
    torch.testing.assert_close(
        computed_share(kept, grid), keep_mask(kept, grid).float().mean((-2, -1)), atol=1e-6, rtol=0
    )


def test_a_fixed_share_is_computed_as_planned() -> None:
    grid = Grid(text=5, image=230, key=32, group=3)
    q, k = queries_and_keys(grid, 0)
    for producer in PRODUCERS:
        kept = block_map(q, k, grid, 0.5, producer)
        assert (computed_share(kept, grid) - grid.density(0.5)).abs().max() < 1e-6


def test_a_window_is_moved_at_the_ends_and_not_cut() -> None:
    grid = Grid(text=0, image=20, key=2, group=1)
    kept = block_map(*queries_and_keys(grid, 0, batch=1), grid, 0.3, "window")[0, 0]
    assert [row.nonzero().flatten().tolist() for row in kept[[0, 1, 4, 9]]] == [
        [0, 1, 2],
        [0, 1, 2],
        [3, 4, 5],
        [7, 8, 9],
    ]


def test_heads_that_would_compute_too_much_are_dense() -> None:
    grid = Grid(text=0, image=40, key=8, group=1)
    kept = torch.eye(5, dtype=torch.bool).expand(1, 3, 5, 5).clone()
    kept[0, 1, :, :3] = True
    kept[0, 2, :, :4] = True
    shares = computed_share(kept, grid)
    assert shares.tolist() == [[pytest.approx(0.2), pytest.approx(17 / 25), pytest.approx(21 / 25)]]
    assert with_dense_heads(kept, grid, 0.7).flatten(2).all(-1).tolist() == [[False, False, True]]
    assert torch.equal(with_dense_heads(kept, grid, 1.0), kept)


def test_a_sliding_tile_keeps_the_blocks_that_lie_nearest_in_the_picture() -> None:
    """32 x 32 tokens in Hilbert order are 16 patches of 8 x 8: of a patch inside, the 3 x 3 around it are kept."""
    grid, shape = Grid(text=5, image=1024, key=64, group=1), (32, 32)
    places = torch.zeros(grid.tokens, 2)
    places[5:] = torch.cartesian_prod(*(torch.arange(side) for side in shape))[hilbert(shape)].float()
    q, k = (torch.randn(2, grid.tokens, 3, 8) for _ in range(2))
    given = places[None, :, None].expand(2, -1, 3, -1)
    kept = maps.block_map(sliding_tile(q, k, grid, places=given), grid, 9 / 16)
    patches = places[5:].view(16, 64, 2).mean(1).div(8).floor()  # which patch a block is
    away = (patches[:, None] - patches[None]).abs().amax(-1)
    inside = ((patches > 0) & (patches < 3)).all(-1)
    assert inside.sum() == 4 and torch.equal(kept[1, 2][inside], (away <= 1)[inside])
    assert not torch.equal(kept, maps.block_map(window(q, k, grid), grid, 9 / 16))
    assert torch.equal(sliding_tile(q, k, grid), window(q, k, grid))


def test_of_blocks_with_as_much_mass_those_are_kept_whose_values_differ() -> None:
    """Blocks 4 to 7 have one value each, which their mean replaces exactly: only a row's own one is kept."""
    grid, generator = Grid(text=0, image=512, key=64, group=1), torch.Generator().manual_seed(0)
    q, k = torch.zeros(1, 512, 2, 8), torch.zeros(1, 512, 2, 8)
    v = torch.randn(1, 8, 64, 2, 8, generator=generator)
    v[:, 4:] = v[:, 4:, :1]
    v = v.flatten(1, 2)
    by_loss = losses(sampled(q, k, grid), v, grid)
    kept = maps.block_map(by_loss, grid, 5 / 8)[0, 1]
    assert kept[:, :4].all() and kept[4:, 4:].equal(torch.eye(4, dtype=torch.bool))
    assert torch.equal(losses(sampled(q, k, grid), torch.ones_like(v), grid), sampled(q, k, grid))
    assert (by_loss > 0).all() and losses(torch.ones(1, 2, 0, 0), v[:, :40], Grid(0, 40, 64, 1)).shape == (1, 2, 0, 0)


@settings(deadline=None, max_examples=20)
@given(seed=seeds, offset=st.sampled_from([0.0, 1e3]), keep=st.sampled_from([0.25, 0.5]))
def test_by_loss_outputs_are_nearer_than_by_mass(seed: int, offset: float, keep: float) -> None:
    """Where the values of every second block do not differ, remainder included."""
    grid, generator = cut(1024, 8, 64, "cpu"), torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, grid.tokens, 2, 16, generator=generator) for _ in range(3))
    blocks = v[:, 8:].unflatten(1, (16, 64))
    alike = torch.arange(16)[:, None, None, None] % 2 == 1
    v = torch.cat([v[:, :8], blocks.where(~alike, blocks.mean(2, keepdim=True)).flatten(1, 2)], 1) + offset
    off = []
    for by in (shares := sampled(q, k, grid), losses(shares, v, grid)):
        made = kernels.sparse_attention(q, k, v, maps.block_map(by, grid, keep), grid, Flex())
        off.append(float((made - kernels.dense(q, k, v)).norm()))
    assert off[1] < off[0]
