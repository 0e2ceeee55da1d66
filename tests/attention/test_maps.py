"""Block maps: what is always kept, how much is kept, and that nothing leaks between samples, heads and precisions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.attention.maps import Grid, cut, keep_mask

from .mapped import block_map

grids = st.builds(
    Grid, text=st.integers(0, 9), image=st.integers(4, 90), key=st.sampled_from([2, 4]), group=st.integers(1, 5)
)
keeps = st.floats(0.01, 1.0)


def random_map(grid: Grid, keep: float, seed: int = 0, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(batch, grid.tokens, 3, 8, generator=generator) for _ in range(2))
    return block_map(q, k, grid, keep)


def kept_of(kept: torch.Tensor) -> list[list[int]]:
    """The blocks of each row, of the first sample's first head."""
    return [row.nonzero().flatten().tolist() for row in kept[0, 0]]


@settings(deadline=None, max_examples=40)
@given(grid=grids, keep=keeps, seed=st.integers(0, 99))
def test_text_tail_and_diagonal_are_always_kept(grid: Grid, keep: float, seed: int) -> None:
    mask = keep_mask(random_map(grid, keep, seed), grid)
    outside = torch.ones(grid.tokens, dtype=torch.bool)
    outside[grid.text : grid.end] = False
    assert mask[..., outside].all() and mask[:, :, outside].all()
    assert mask.diagonal(dim1=2, dim2=3).all()


@settings(deadline=None, max_examples=40)
@given(grid=grids, keep=keeps, seed=st.integers(0, 99))
def test_every_row_keeps_the_same_exact_number_of_blocks(grid: Grid, keep: float, seed: int) -> None:
    kept = random_map(grid, keep, seed)
    expected = max(math.ceil(keep * grid.blocks), min(grid.group, grid.blocks))
    assert kept.shape == (2, 3, -(-grid.blocks // grid.group), grid.blocks)
    assert (kept.sum(-1) == expected).all()
    assert keep_mask(kept, grid).float().mean().item() == pytest.approx(grid.density(keep), abs=1e-6)


def test_float_dust_does_not_keep_a_block_too_many() -> None:
    assert Grid(0, 100, 1, 1).kept(0.07) == 7  # 0.07 * 100 is 7.000000000000001
    assert Grid(0, 100, 1, 1).kept(0.071) == 8


def test_the_best_matching_blocks_are_kept() -> None:
    """Queries of block 0 point at block 3, those of block 1 at block 2; one sample and one head."""
    grid = Grid(text=1, image=16, key=4, group=1)
    directions = torch.eye(4).repeat_interleave(4, 0)
    k = torch.cat([torch.zeros(1, 4), directions])[None, :, None]
    q = torch.cat([torch.zeros(1, 4), directions[[12] * 4 + [8] * 4 + [0] * 4 + [4] * 4]])[None, :, None]
    assert kept_of(block_map(q, k, grid, 0.5)) == [[0, 3], [1, 2], [0, 2], [1, 3]]


@settings(deadline=None, max_examples=25)
@given(grid=grids, keep=keeps, seed=st.integers(0, 99))
def test_the_map_is_the_top_of_the_pooled_scores(grid: Grid, keep: float, seed: int) -> None:
    """Against the definition, block by block: mean query of the whole query block, mean key, largest products."""
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, grid.tokens, 1, 8, generator=generator) for _ in range(2))
    keys = k[0, grid.text : grid.end, 0].split(grid.key)
    for row, query in enumerate(q[0, grid.text : grid.end, 0].split(grid.key * grid.group)):
        scores = {j: float(query.mean(0) @ block.mean(0)) for j, block in enumerate(keys)}
        own = {j for j in scores if j // grid.group == row}
        best = [*own, *sorted(scores.keys() - own, key=scores.__getitem__, reverse=True)]
        assert kept_of(block_map(q, k, grid, keep))[row] == sorted(best[: grid.kept(keep)])


def test_samples_and_heads_choose_for_themselves() -> None:
    grid = Grid(text=3, image=64, key=4, group=2)
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(3, grid.tokens, 2, 8, generator=generator) for _ in range(2))
    together = block_map(q, k, grid, 0.4)
    for sample in range(3):
        assert torch.equal(together[sample], block_map(q[sample : sample + 1], k[sample : sample + 1], grid, 0.4)[0])
    for head in range(2):
        assert torch.equal(together[:, head], block_map(q[:, :, [head]], k[:, :, [head]], grid, 0.4)[:, 0])
    assert not torch.equal(together[0], together[1]) and not torch.equal(together[:, 0], together[:, 1])


def test_precision_of_the_scores_does_not_change_the_map() -> None:
    """bf16 inputs are pooled and scored in fp32: the same map as for the same numbers held in fp32."""
    grid = cut(image=1024, text=16, block=None, device="cpu")
    q, k = (torch.randn(1, grid.tokens, 2, 64).bfloat16() for _ in range(2))
    assert torch.equal(block_map(q, k, grid, 0.5), block_map(q.float(), k.float(), grid, 0.5))


@pytest.mark.parametrize(
    ("device", "block", "key", "group"),
    [("cpu", None, 64, 4), ("cpu", 128, 64, 2), ("cuda", None, 128, 1), ("cuda", 64, 128, 1), ("cuda", 320, 128, 3)],
)
def test_blocks_fit_the_device(device: str, block: int | None, key: int, group: int) -> None:
    assert cut(1024, 16, block, device) == Grid(16, 1024, key, group)
