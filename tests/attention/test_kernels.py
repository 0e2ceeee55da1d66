"""Kernels against plain attention with the map spelled out as a boolean mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask

from stack.attention import gathered, kernels
from stack.attention.flex import Flex, flex_mask, kept_tiles, on_tiles
from stack.attention.gathered import gather_attention
from stack.attention.kernels import dense
from stack.attention.maps import Grid, keep_mask

from .mapped import block_map, flex_uncompiled, sparse_attention

GRIDS = {
    "even": Grid(text=16, image=256, key=32, group=2),
    "tail of keys": Grid(text=16, image=250, key=32, group=2),
    "short last query block": Grid(text=5, image=230, key=32, group=3),
    "text last": Grid(text=6, image=230, key=32, group=3, text_last=True),
    "text of whole tiles": Grid(text=64, image=230, key=32, group=3),
    "no text": Grid(text=0, image=192, key=64, group=1),
    "tail only": Grid(text=0, image=200, key=64, group=2),
    "one block": Grid(text=7, image=70, key=64, group=4),
    "no block": Grid(text=7, image=50, key=64, group=4),
}
KEEPS = (0.05, 0.25, 0.35, 0.5, 0.75, 1.0)


def qkv(grid: Grid, batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, grid.tokens, 3, 32, generator=generator) for _ in range(3))
    return 2 * q, k, v


def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def tiles_of(kept: torch.Tensor, grid: Grid, seen: torch.Tensor | None = None) -> BlockMask:
    ordered = None if seen is None else on_tiles(seen, grid)
    return flex_mask(kept_tiles(kept, grid), grid, ordered)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_gather_equals_a_boolean_mask(grid: Grid, keep: float) -> None:
    q, k, v = qkv(grid)
    kept = block_map(q, k, grid, keep) if grid.blocks else torch.zeros(2, 3, 0, 0, dtype=torch.bool)
    expected = masked(q, k, v, keep_mask(kept, grid))
    torch.testing.assert_close(gather_attention(q, k, v, kept, grid), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("keep", (0.25, 0.5))
@pytest.mark.parametrize("grid", list(GRIDS.values())[:8], ids=list(GRIDS)[:8])
def test_flex_equals_a_boolean_mask(grid: Grid, keep: float) -> None:
    """Eager FlexAttention ignores the block lists: it can only agree through the mask function."""
    q, k, v = qkv(grid)
    kept = block_map(q, k, grid, keep)
    expected = masked(q, k, v, keep_mask(kept, grid))
    torch.testing.assert_close(flex_uncompiled(q, k, v, kept, grid, remainder=False), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("grid", list(GRIDS.values())[:8], ids=list(GRIDS)[:8])
def test_flex_block_lists_say_what_its_mask_function_says(grid: Grid) -> None:
    """The compiled kernel skips by the lists alone; both must describe the same map."""
    q, k, _ = qkv(grid)
    mask = tiles_of(block_map(q, k, grid, 0.25), grid)
    assert mask.full_kv_num_blocks is not None and mask.full_kv_indices is not None
    assert not mask.kv_num_blocks.any()
    times = torch.zeros(mask.full_kv_indices.shape, dtype=torch.long)
    in_list = torch.arange(times.shape[-1]) < mask.full_kv_num_blocks[..., None]
    times.scatter_add_(-1, mask.full_kv_indices.long(), in_list.long())
    assert times.max() == 1, "no tile is computed twice"
    listed = times.bool()
    position = torch.arange(grid.tokens)
    looked_up = mask.mask_mod(
        torch.arange(2)[:, None, None, None], torch.arange(3)[:, None, None], position[:, None], position
    )
    fine = listed.repeat_interleave(grid.key, 2).repeat_interleave(grid.key, 3)
    assert torch.equal(fine[:, :, : grid.tokens, : grid.tokens], looked_up)
    assert not listed.all() or grid.blocks <= grid.group


def uneven_map(grid: Grid, seed: int = 0) -> torch.Tensor:
    """Rows keep anything from one block to all of them; in the first sample's first head only one, in the last all."""
    generator = torch.Generator().manual_seed(seed)
    chances = torch.rand(2, 3, grid.rows, 1, generator=generator)
    kept = torch.rand(2, 3, grid.rows, grid.blocks, generator=generator) < chances
    kept[0, 0], kept[1, 2] = False, True
    return kept | torch.eye(grid.rows, grid.blocks, dtype=torch.bool)


@pytest.mark.parametrize("products", [False, True], ids=["torch", "products"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grid", list(GRIDS.values())[:8], ids=list(GRIDS)[:8])
def test_rows_of_different_lengths_equal_a_boolean_mask(
    grid: Grid, dtype: torch.dtype, products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both kernels, with keys that nobody may see. Rounding is that of the dtype."""
    monkeypatch.setattr(gathered, "pays", lambda *_: products)
    q, k, v = (x.to(dtype) for x in qkv(grid))
    seen = torch.ones(2, grid.tokens, dtype=torch.bool)
    seen[0, : grid.start - 1 if grid.start else 0] = False
    kept = uneven_map(grid)
    expected = masked(q.float(), k.float(), v.float(), keep_mask(kept, grid) & seen[:, None, None])
    close = {"atol": 1e-5 if dtype == torch.float32 else 16 * torch.finfo(dtype).eps, "rtol": 0}
    torch.testing.assert_close(gather_attention(q, k, v, kept, grid, seen=seen).float(), expected, **close)
    torch.testing.assert_close(flex_uncompiled(q, k, v, kept, grid, seen, False).float(), expected, **close)


def test_a_row_that_drops_nothing_is_exact_beside_one_that_does() -> None:
    grid = GRIDS["short last query block"]
    q, k, v = qkv(grid)
    kept = uneven_map(grid)
    for out in (kernels.sparse_attention(q, k, v, kept, grid, Flex()), flex_uncompiled(q, k, v, kept, grid)):
        off = (out - dense(q, k, v)).abs().amax((1, 3))
        assert off[1, 2] < 1e-5 and off[0, 0] > 0.05


@pytest.mark.parametrize("keep", (0.25, 1.0))
@pytest.mark.parametrize("grid", [GRIDS["text last"], GRIDS["short last query block"]], ids=["last", "first"])
def test_hidden_keys_are_seen_by_nobody(grid: Grid, keep: float) -> None:
    """Text of the first sample is padded; the same as a boolean mask, by either kernel, and as no such keys at all."""
    q, k, v = qkv(grid)
    seen = torch.ones(2, grid.tokens, dtype=torch.bool)
    hidden = slice(grid.tokens - 3, None) if grid.text_last else slice(2, grid.text)
    seen[0, hidden] = False
    kept = block_map(q, k, grid, keep)
    expected = masked(q, k, v, keep_mask(kept, grid) & seen[:, None, None])
    torch.testing.assert_close(gather_attention(q, k, v, kept, grid, seen=seen), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(flex_uncompiled(q, k, v, kept, grid, seen, False), expected, atol=1e-5, rtol=0)
    k[0, hidden], v[0, hidden] = 50.0, 1e3
    through = sparse_attention(q, k, v, grid, keep, seen)
    assert through[0].abs().max() < 100
    if keep == 1:
        torch.testing.assert_close(through, dense(q, k, v, seen), atol=1e-5, rtol=0)


def test_hidden_keys_lie_in_partial_tiles_alone() -> None:
    """A compiled kernel asks the mask function there and nowhere else."""
    grid = GRIDS["text last"]
    q, k, _ = qkv(grid)
    seen = torch.ones(2, grid.tokens, dtype=torch.bool)
    seen[0, -3:] = False
    mask, plain = tiles_of(block_map(q, k, grid, 0.5), grid, seen), tiles_of(block_map(q, k, grid, 0.5), grid)
    tiles = -(-grid.tokens // grid.key)
    assert (mask.kv_num_blocks == tiles - grid.blocks).all() and mask.full_kv_num_blocks is not None
    listed = mask.kv_indices[..., : tiles - grid.blocks]
    assert (listed == torch.arange(grid.blocks, tiles)).all()
    assert plain.full_kv_num_blocks is not None
    assert torch.equal(mask.full_kv_num_blocks + mask.kv_num_blocks, plain.full_kv_num_blocks)
    assert not mask.mask_mod(torch.tensor(0), torch.tensor(0), torch.tensor(0), torch.tensor(grid.tokens - 1))


def test_keeping_everything_is_dense_attention() -> None:
    grid = GRIDS["short last query block"]
    q, k, v = qkv(grid)
    torch.testing.assert_close(sparse_attention(q, k, v, grid, 1.0), dense(q, k, v), atol=1e-5, rtol=0)


def test_dropping_changes_the_image_and_not_the_text() -> None:
    grid = GRIDS["tail of keys"]
    q, k, v = qkv(grid)
    difference = (sparse_attention(q, k, v, grid, 0.25) - dense(q, k, v)).abs().amax((0, 2, 3))
    assert difference[grid.text : grid.end].min() > 1e-3
    assert difference[: grid.text].max() < 1e-6 and difference[grid.end :].max() < 1e-6


def test_batched_equals_one_by_one() -> None:
    grid = GRIDS["short last query block"]
    q, k, v = qkv(grid, batch=3)
    together = sparse_attention(q, k, v, grid, 0.35)
    for i in range(3):
        alone = sparse_attention(q[i : i + 1], k[i : i + 1], v[i : i + 1], grid, 0.35)
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-6, rtol=0)


def test_tensors_cut_out_of_larger_ones_are_read_where_they_lie() -> None:
    """Fused projections hand over views whose strides are not those of a fresh tensor."""
    grid = GRIDS["even"]
    fused = torch.randn(2, grid.tokens, 3, 96)
    q, k, v = fused.chunk(3, dim=-1)
    copied = sparse_attention(q.contiguous(), k.contiguous(), v.contiguous(), grid, 0.5)
    assert torch.equal(sparse_attention(q, k, v, grid, 0.5), copied)


def test_gradients_flow_only_to_kept_values() -> None:
    grid = Grid(text=0, image=128, key=32, group=1)
    q, k, v = qkv(grid, batch=1)
    v.requires_grad_(True)
    kept = torch.eye(4, dtype=torch.bool)[[0, 0, 2, 3]].expand(1, 3, 4, 4)  # nobody keeps block 1
    gather_attention(q, k, v, kept, grid).sum().backward()
    assert v.grad is not None
    per_block = v.grad.abs().sum((0, 2, 3)).view(4, 32).sum(-1)
    assert per_block[1] == 0 and (per_block[[0, 2, 3]] > 1).all()


def test_queries_that_keep_all_read_the_keys_where_they_lie() -> None:
    """Beside some that do not, with keys of the text hidden; the log-sum-exp is theirs too."""
    grid = GRIDS["text last"]
    q, k, v = qkv(grid)
    seen = torch.ones(2, grid.tokens, dtype=torch.bool)
    seen[0, -3:] = False
    kept = block_map(q, k, grid, 0.3)
    kept[0, 1] = kept[1, 2] = True
    lse = torch.zeros(2, 3, grid.end - grid.start)
    out = gather_attention(q, k, v, kept, grid, lse, seen)
    mask = keep_mask(kept, grid) & seen[:, None, None]
    torch.testing.assert_close(out, masked(q, k, v, mask), atol=1e-5, rtol=0)
    scores = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / 32**0.5).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(lse, scores.logsumexp(-1)[:, :, grid.start : grid.end], atol=1e-5, rtol=1e-5)
    keys, every = k[0, :, 0].contiguous(), torch.arange(grid.blocks)
    outside = torch.cat([torch.arange(grid.start), torch.arange(grid.end, grid.tokens)])
    whole = gathered._Keys(keys, v[0, :, 0], outside, grid)
    assert whole.of(None)[0] is keys and whole.of(every)[0] is keys and whole.of(every[1:])[0] is not keys
    assert gathered._Keys(keys, v[0, :, 0], outside[1:], grid).of(None)[0].shape == (grid.tokens - 1, 32)
