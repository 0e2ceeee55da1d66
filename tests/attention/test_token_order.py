"""Orders of the tokens: what they are, that they are undone exactly, and which one a head gets."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.attention.flex import Flex
from stack.attention.head_orders import best_orders
from stack.attention.kernels import dense, sparse_attention
from stack.attention.maps import Grid, block_map, computed_share, keep_mask
from stack.attention.policy_map import policy_map
from stack.attention.producers import PRODUCERS, held_out
from stack.attention.sparsity import SparsityPolicy
from stack.attention.token_order import ORDERS, TokenOrder, hilbert, tables, transposed

sides = st.integers(1, 9)
shapes = st.tuples(sides, sides) | st.tuples(st.integers(1, 5), sides, sides)
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def drawn(grid: Grid, seed: int, heads: int = 3, batch: int = 2) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, grid.tokens, heads, 8, generator=generator) for _ in range(3))
    return q, k, v


def everywhere(order: str, batch: int = 1, heads: int = 1) -> torch.Tensor:
    return torch.full((batch, heads), list(ORDERS).index(order))


def in_place(kept: torch.Tensor, grid: Grid, order: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Which tokens see which (S, S), in their own places, of the map of one head in an order."""
    at = tables(shape, grid)[list(ORDERS).index(order)].argsort()
    return keep_mask(kept, grid)[0, 0][at][:, at]


@pytest.mark.parametrize("shape", [(2, 2), (4, 4), (16, 16), (2, 2, 2), (8, 8, 8)])
def test_neighbours_on_the_curve_are_neighbours_on_the_grid(shape: tuple[int, ...]) -> None:
    places = torch.cartesian_prod(*(torch.arange(side) for side in shape))[hilbert(shape)]
    assert (places.diff(dim=0).abs().sum(1) == 1).all()


def test_a_block_of_64_tokens_along_the_curve_is_a_square_of_8_by_8() -> None:
    places = torch.cartesian_prod(torch.arange(64), torch.arange(64))[hilbert((64, 64))].unflatten(0, (-1, 64))
    assert (places.amax(1) - places.amin(1) == 7).all()


def test_transposed_goes_down_the_columns_and_through_the_frames() -> None:
    assert transposed((2, 3)).tolist() == [0, 3, 1, 4, 2, 5]
    assert transposed((2, 2, 2)).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@settings(deadline=None, max_examples=40)
@given(shape=shapes, text=st.integers(0, 9), behind=st.booleans(), key=st.sampled_from([2, 4]), seed=st.integers(0, 99))
def test_put_and_undone_nothing_has_moved(shape: tuple[int, ...], text: int, behind: bool, key: int, seed: int) -> None:
    """Each head in an order of its own; text stays in its place all the while."""
    grid = Grid(text, math.prod(shape), key, 2, behind)
    found, (x, _, _) = tables(shape, grid), drawn(grid, seed)
    assert torch.equal(found.sort(1).values, torch.arange(grid.tokens).expand(len(ORDERS), -1))
    chosen = torch.randint(len(ORDERS), (2, 3), generator=torch.Generator().manual_seed(seed))
    order = TokenOrder(found, chosen)
    put = order.put(x)
    for sample in range(2):
        for head in range(3):
            assert torch.equal(put[sample, :, head], x[sample, found[chosen[sample, head]], head])
    words = slice(grid.image, None) if behind else slice(0, text)
    assert torch.equal(put[:, words], x[:, words]) and torch.equal(order.undo(put), x)


@settings(deadline=None, max_examples=25)
@given(shape=shapes, text=st.integers(0, 9), behind=st.booleans(), seed=st.integers(0, 99))
def test_where_all_is_kept_the_bits_are_those_of_dense_attention(
    shape: tuple[int, ...], text: int, behind: bool, seed: int
) -> None:
    """Scores of 0 or far below and whole values: sums that are exact in any order."""
    grid = Grid(text, math.prod(shape), 2, 2, behind)
    q, k, v = drawn(grid, seed)
    q, k = (1000 * torch.eye(8)[x.argmax(-1)] for x in (q, k))
    v = v.mul(8).round()
    order = TokenOrder(tables(shape, grid), torch.tensor([[0, 1, 2], [2, 1, 0]]))
    kept = torch.ones(2, 3, grid.rows, grid.blocks, dtype=torch.bool)
    made = sparse_attention(order.put(q), order.put(k), order.put(v), kept, grid, Flex())
    assert torch.equal(order.undo(made), dense(q, k, v))


def test_a_window_is_a_band_over_frames_or_over_time() -> None:
    """4 frames of 3 x 3: the nearest block is a query's own frame, or its own place in all frames; text sees all."""
    shape, place = (4, 3, 3), torch.arange(36)
    for order, key, same in (("raster", 9, place // 9), ("transposed", 4, place % 9)):
        grid = Grid(2, 36, key, 1)
        q, k, _ = drawn(grid, 0, heads=1, batch=1)
        kept = block_map(PRODUCERS["window"](q, k, grid), grid, 1 / grid.blocks)
        mask = in_place(kept, grid, order, shape)
        assert torch.equal(mask[2:, 2:], same[:, None] == same) and mask[:2].all() and mask[:, :2].all()


def price(policy: SparsityPolicy, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Of ordered tokens, by head (B, H): mean square error of what the kernel makes of the sampled queries."""
    kept, at = policy_map(policy, q, k, v, grid, None).kept, held_out(q, k, grid).at
    right = dense(q, k, v)[:, at]
    off = (sparse_attention(q, k, v, kept, grid, Flex())[:, at] - right).square().sum((1, 3))
    return computed_share(kept, grid) if policy.budget else off / right.square().sum((1, 3))


@settings(deadline=None, max_examples=20)
@given(
    shape=st.sampled_from([(8, 8), (4, 16), (4, 4, 4), (2, 4, 8)]),
    text=st.sampled_from([0, 5]),
    policy=st.sampled_from(
        [
            *(SparsityPolicy(0.4, producer=name) for name in PRODUCERS),
            SparsityPolicy(0.0, max_mass=0.2, even_if_slower=True),
            SparsityPolicy(0.0, max_error=0.2, even_if_slower=True),
        ]
    ),
    seed=st.integers(0, 99),
)
def test_every_head_gets_the_order_with_the_lowest_price(
    shape: tuple[int, ...], text: int, policy: SparsityPolicy, seed: int
) -> None:
    grid = Grid(text, 64, 4, 2)
    qkv, found = drawn(grid, seed), tables(shape, grid)
    qkv = 2 * qkv[0], *qkv[1:]
    chosen = best_orders(policy, lambda: qkv, found, grid)
    orders = [TokenOrder(found, everywhere(order, 2, 3)) for order in ORDERS]
    prices = torch.stack([price(policy, *(order.put(x) for x in qkv), grid) for order in orders])
    assert (prices.gather(0, chosen[None])[0] <= prices.amin(0) * (1 + 1e-3) + 1e-9).all()


def test_a_head_that_looks_along_columns_gets_columns() -> None:
    """8 x 8 tokens: one head attends to its row, one to its column, one to its quarter of 4 x 4."""
    grid, place = Grid(0, 64, 16, 1), torch.arange(64)
    row, column = place // 8, place % 8
    groups = torch.stack([row // 2, column // 2, row // 4 * 2 + column // 4], 1)
    q = 30 * torch.eye(4)[groups][None]
    v = torch.randn(1, 64, 3, 4, generator=torch.Generator().manual_seed(0))
    for policy in (SparsityPolicy(0.25), SparsityPolicy(0.0, max_mass=0.1, even_if_slower=True)):
        chosen = best_orders(policy, lambda: (q, q, v), tables((8, 8), grid), grid)
        assert [list(ORDERS)[i] for i in chosen[0]] == ["raster", "transposed", "hilbert"]
