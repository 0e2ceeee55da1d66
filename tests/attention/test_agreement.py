"""One map, computed by every kernel: drawn shapes, dtypes, maps and hidden keys, against a boolean mask in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.attention import gathered
from stack.attention.flex import Flex
from stack.attention.gathered import gather_attention
from stack.attention.kernels import dense
from stack.attention.maps import Grid, keep_mask
from stack.attention.products import products
from stack.attention.token_order import TokenOrder, tables

from .mapped import flex_uncompiled
from .test_kernels import masked

HEADS = 2
# Rounding of inputs is in neither side: of scores, weights and outputs.
CLOSE = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.08}
BY_PRODUCTS = (torch.bfloat16, torch.float32)  # whose weights may be as large as exp(16)
grids = st.builds(
    Grid, text=st.integers(0, 9) | st.integers(10, 300), image=st.integers(30, 330), key=st.sampled_from([16, 32, 64]),
    group=st.integers(1, 4), text_last=st.booleans(),
)  # fmt: skip


def draw(grid: Grid, seed: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, grid.tokens, HEADS, 16, generator=generator) for _ in range(3))
    return [x.to(dtype) for x in (2 * q, k + 0.5, v)]


def mapped(grid: Grid, seed: int, kind: str) -> torch.Tensor:
    """(1, H, rows, blocks): one block in each row, all but one, or any number of them; of the last head all."""
    generator, shape = torch.Generator().manual_seed(seed), (1, HEADS, grid.rows, grid.blocks)
    which = torch.rand(shape, generator=generator)
    if kind == "any":
        kept = which < torch.rand(*shape[:3], 1, generator=generator)
    else:
        kept = which == which.amax(-1, keepdim=True)
        kept = kept if kind == "one" else ~kept
    kept[:, -1] = True
    return kept


@settings(deadline=None, max_examples=60)
@given(
    grid=grids, seed=st.integers(0, 9999), dtype=st.sampled_from(list(CLOSE)), hidden=st.integers(0, 3),
    kind=st.sampled_from(["one", "all but one", "any"]), by_products=st.booleans(),
)  # fmt: skip
def test_every_kernel_computes_what_a_boolean_mask_does(
    grid: Grid, seed: int, dtype: torch.dtype, hidden: int, kind: str, by_products: bool
) -> None:
    if not grid.blocks or (grid.blocks == 1 and kind == "all but one" and not grid.rest):
        return
    q, k, v = draw(grid, seed, dtype)
    kept, seen = mapped(grid, seed, kind), None
    outside = [t for t in range(grid.tokens) if not grid.start <= t < grid.end]
    if 0 < hidden < len(outside):
        seen = torch.ones(1, grid.tokens, dtype=torch.bool)
        seen[0, outside[:hidden]] = False
    mask = keep_mask(kept, grid)
    if not (mask if seen is None else mask & seen[:, None, None]).any(-1).all():
        return  # a row without a key: no map of ours has one
    right = masked(*(x.double() for x in (q, k, v)), mask if seen is None else mask & seen[:, None, None])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathered, "pays", lambda *_: by_products and dtype in BY_PRODUCTS)
        found = [gather_attention(q, k, v, kept, grid, seen=seen), flex_uncompiled(q, k, v, kept, grid, seen, False)]
    for made in found:
        assert made.dtype == dtype
        torch.testing.assert_close(made.double(), right, atol=CLOSE[dtype], rtol=CLOSE[dtype])


@settings(deadline=None, max_examples=30)
@given(tokens=st.integers(1, 330), seed=st.integers(0, 9999), dtype=st.sampled_from(list(CLOSE)))
def test_dense_kernels_compute_the_same(tokens: int, seed: int, dtype: torch.dtype) -> None:
    q, k, v = draw(Grid(0, tokens, 64, 1), seed, dtype)
    right = dense(*(x.double() for x in (q, k, v)))
    for made in (dense(q, k, v), *([products(q, k, v)] if dtype in BY_PRODUCTS else [])):
        torch.testing.assert_close(made.double(), right, atol=CLOSE[dtype], rtol=CLOSE[dtype])


@settings(deadline=None, max_examples=30)
@given(
    sides=st.lists(st.integers(1, 12), min_size=2, max_size=3), text=st.integers(0, 7), last=st.booleans(),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_an_order_is_undone_exactly(sides: list[int], text: int, last: bool, seed: int) -> None:
    """Every head in an order of its own, bit for bit, and text stays where it is."""
    generator = torch.Generator().manual_seed(seed)
    image = int(torch.tensor(sides).prod())
    grid = Grid(text, image, 16, 1, last)
    found = tables(tuple(sides), grid)
    order = TokenOrder(found, torch.randint(len(found), (2, 3), generator=generator))
    x = torch.randn(2, grid.tokens, 3, 4, generator=generator)
    put = order.put(x)
    assert torch.equal(order.undo(put), x)
    outside = slice(image, None) if last else slice(0, text)
    assert torch.equal(put[:, outside], x[:, outside])
    assert torch.equal(put.sort(1).values, x.sort(1).values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_attention_computes_the_same(dtype: torch.dtype) -> None:
    """As a graph of torch's own operators: inductor's code for a map of tiles does not build on a CPU in torch 2.13."""
    grid = Grid(text=5, image=230, key=32, group=3)
    q, k, v = draw(grid, 3, dtype)
    kept = mapped(grid, 3, "any")
    made = Flex("aot_eager", remainder=False)(q, k, v, kept, grid)
    right = masked(*(x.double() for x in (q, k, v)), keep_mask(kept, grid))
    torch.testing.assert_close(made.double(), right, atol=CLOSE[dtype], rtol=CLOSE[dtype])
