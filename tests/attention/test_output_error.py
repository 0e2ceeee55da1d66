"""Maps for a budget of the error: what sampled queries lose is measured, and stays within it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.attention import maps
from stack.attention.flex import Flex
from stack.attention.kernels import dense, sparse_attention
from stack.attention.maps import Grid, block_map, first_blocks, ranked
from stack.attention.output_error import error_map, errors_by_count, levels
from stack.attention.policy_map import policy_map
from stack.attention.producers import Sample, sample_of
from stack.attention.sparsity import SparsityPolicy

from .test_producers import grids, own_blocks, seeds

Qkv = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
draws = given(
    grid=grids,
    seed=seeds,
    sharpness=st.sampled_from([0.0, 1.0, 5.0, 30.0]),
    outlier=st.sampled_from([1.0, -1e4]),
    alike=st.booleans(),
    max_error=st.sampled_from([1e-3, 0.03, 0.3]),
)


def scene(grid: Grid, seed: int, sharpness: float, outlier: float, alike: bool) -> Qkv:
    """Random (2, S, 3, 8) fp32; one value of every block is huge, or all values are near one another."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, grid.tokens, 3, 8, generator=generator) for _ in range(3))
    v[:, grid.start : grid.end : grid.key] *= outlier
    return sharpness * q, k, 1 + 1e-3 * v if alike else v


def measured(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kept: torch.Tensor, sample: Sample, grid: Grid) -> Qkv:
    """Of what runs against exact attention, by row (2, H, rows): mean squares of the sampled outputs' errors and of the
    outputs, and how many there are. In fp64."""
    q, k, v = (x.double() for x in (q, k, v))
    exact = dense(q, k, v)[:, sample.at].transpose(1, 2)
    off = sparse_attention(q, k, v, kept, grid, Flex())[:, sample.at].transpose(1, 2) - exact
    in_row = grid.group * (len(sample.at) // grid.blocks)
    squares = [torch.stack([x.square().sum(-1).mean(-1) for x in y.split(in_row, 2)], 2) for y in (off, exact)]
    return *squares, torch.tensor([part.shape[2] for part in exact.split(in_row, 2)])


@settings(deadline=None, max_examples=60)
@draws
def test_sampled_outputs_are_within_the_budget(
    grid: Grid, seed: int, sharpness: float, outlier: float, alike: bool, max_error: float
) -> None:
    """Of every row, so also of every head, by the kernel that runs and not by the sums that chose the map."""
    q, k, v = scene(grid, seed, sharpness, outlier, alike)
    sample = sample_of(q, k, grid)
    kept, told = error_map(q, k, v, sample, sample.shares(grid), grid, max_error)
    assert kept[..., own_blocks(grid)].all()
    off, energy, sizes = measured(q, k, v, kept, sample, grid)
    overall = (energy * sizes).sum(-1, keepdim=True) / sizes.sum()
    # fp32 sums of values up to 4e4: a head's outputs are near 1 where all but outliers are seen.
    dust = 1e-5 * (1 + abs(outlier) / overall.sqrt())
    assert (told <= max_error).all()
    assert ((off / overall).sqrt() <= max_error + dust).all()
    torch.testing.assert_close(told.double(), (off / overall).sqrt(), atol=float(dust.max()), rtol=1e-3)


@settings(deadline=None, max_examples=40)
@draws
def test_the_next_sparser_map_is_not_within_the_budget(
    grid: Grid, seed: int, sharpness: float, outlier: float, alike: bool, max_error: float
) -> None:
    """The map is the sparsest of those that keep the first blocks of the order, for every row on its own."""
    q, k, v = scene(grid, seed, sharpness, outlier, alike)
    sample = sample_of(q, k, grid)
    order, counts = ranked(sample.shares(grid), grid), levels(grid, q.device)
    errors = errors_by_count(q, k, v, sample, order, grid, counts)
    chosen = error_map(q, k, v, sample, sample.shares(grid), grid, max_error)[0].sum(-1)
    at = torch.searchsorted(counts, chosen)
    one_less = errors.gather(-1, (at - 1).clamp(min=0)[..., None])[..., 0]
    assert (~(one_less <= max_error) | (chosen == own_blocks(grid).sum(-1))).all()
    later = counts >= chosen[..., None]
    assert ((errors <= max_error) | ~later).all() and (errors[..., -1] == 0).all()


def test_where_all_queries_of_a_block_agree_the_budget_bounds_every_output() -> None:
    grid = Grid(text=5, image=320, key=32, group=2)
    q, k, v = scene(grid, 0, 3.0, 1.0, False)
    inside = q[:, grid.start : grid.end].unflatten(1, (-1, grid.key))
    q[:, grid.start : grid.end] = inside[:, :, :1].expand_as(inside).flatten(1, 2)
    sample = sample_of(q, k, grid)
    kept, _ = error_map(q, k, v, sample, sample.shares(grid), grid, 0.1)
    exact = dense(q, k, v)[:, grid.start : grid.end]
    off = sparse_attention(q, k, v, kept, grid, Flex())[:, grid.start : grid.end] - exact
    found = off.square().sum((1, 3)).sqrt() / exact.square().sum((1, 3)).sqrt()
    assert not kept.all() and 0.01 < float(found.max()) <= 0.1


def test_hidden_keys_have_no_part_in_it() -> None:
    grid = Grid(text=6, image=64, key=8, group=2)
    q, k, v = scene(grid, 1, 2.0, 1.0, False)
    seen = torch.ones(2, grid.tokens, dtype=torch.bool)
    seen[:, 2:6] = False
    rows, without = [0, 1, *range(6, grid.tokens)], Grid(text=2, image=64, key=8, group=2)
    hidden, gone = (
        errors_by_count(*given, sample, ranked(sample.shares(g), g), g, levels(g, q.device))
        for given, g, sample in (
            ((q, k, v), grid, sample_of(q, k, grid, seen)),
            (tuple(x[:, rows] for x in (q, k, v)), without, sample_of(q[:, rows], k[:, rows], without)),
        )
    )
    torch.testing.assert_close(hidden, gone)


def test_half_precision_is_measured_as_it_runs() -> None:
    grid = Grid(text=16, image=512, key=64, group=2)
    q, k, v = scene(grid, 2, 2.0, 1.0, False)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        given = [x.to(dtype) for x in (q, k, v)]
        sample = sample_of(*given[:2], grid)
        order = ranked(sample_of(q, k, grid).shares(grid), grid)
        found.append(errors_by_count(*given, sample, order, grid, levels(grid, q.device)))
    assert found[0][..., 0].min() > 0.1, "with two of eight blocks a good deal is lost"
    torch.testing.assert_close(found[1], found[0], atol=0.02, rtol=0)


def test_what_is_not_a_number_keeps_every_block() -> None:
    grid = Grid(text=4, image=64, key=8, group=2)
    q, k, v = scene(grid, 3, 1.0, 1.0, False)
    q[0, :, 1] = float("nan")
    sample = sample_of(q, k, grid)
    kept, _ = error_map(q, k, v, sample, sample.shares(grid), grid, 0.3)
    assert kept[0, 1].all() and not kept[0, 0].all() and not kept[1, 1].all()


@pytest.mark.parametrize("count", [1, 3, 5])
def test_an_order_gives_its_first_blocks(count: int) -> None:
    grid = Grid(text=0, image=40, key=8, group=1)
    shares = torch.tensor([0.1, 0.3, 0.05, 0.2, 0.35]).expand(1, 1, 5, 5)
    order = ranked(shares, grid)
    assert order[0, 0, 2].tolist() == [2, 4, 1, 3, 0]
    counts = torch.full((1, 1, 5), count)
    assert torch.equal(first_blocks(order, counts), block_map(shares, grid, count / 5))


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        (Grid(16, 4096, 64, 4), [*range(4, 65, 4)]),
        (Grid(0, 1200, 64, 4), [*range(2, 10), *range(11, 19)]),  # 18 blocks, two of them in the last row
        (Grid(0, 90, 64, 4), [1]),
        (Grid(0, 40, 64, 4), [0]),
    ],
)
def test_a_budget_chooses_between_sixteenths_of_the_blocks(grid: Grid, expected: list[int]) -> None:
    assert levels(grid, torch.device("cpu")).tolist() == expected


def test_rows_at_a_time_do_not_change_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid(text=5, image=230, key=32, group=3)
    q, k, v = scene(grid, 4, 2.0, 1.0, False)
    sample, counts = sample_of(q, k, grid), levels(grid, q.device)
    given = (q, k, v, sample, ranked(sample.shares(grid), grid), grid, counts)
    together = errors_by_count(*given)
    monkeypatch.setitem(maps.HELD, "cpu", 1)
    torch.testing.assert_close(errors_by_count(*given), together)


@pytest.mark.parametrize("budget", ["max_error", "max_mass"])
def test_budgets_hold_in_bf16_too(budget: str) -> None:
    """Keys with a large offset in common, sharp scores: rounded to bf16 a score of 100 would be off by a quarter."""
    grid = Grid(16, 512, 64, 2)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, grid.tokens, 2, 64, generator=generator) for _ in range(3))
    q, k, v = (x.to(torch.bfloat16) for x in (30 * q / 8, k + 8, v))
    policy = SparsityPolicy(0.0, even_if_slower=True, **{budget: 0.05})
    kept = policy_map(policy, q, k, v, grid, None).kept
    assert not kept.all()
    wide = [x.double() for x in (q, k, v)]
    sample = sample_of(*wide[:2], grid)
    if budget == "max_mass":
        assert float((sample.shares(grid) * ~kept).sum(-1).max()) <= 0.0505
        return
    off, energy, sizes = measured(q, k, v, kept, sample, grid)
    overall = (energy * sizes).sum(-1, keepdim=True) / sizes.sum()
    assert float((off / overall).sqrt().max()) <= 0.055
