from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.attention.gathered import gather_attention
from stack.attention.kernels import dense
from stack.attention.maps import cut, keep_mask

from .mapped import block_map, sparse_attention

TEXT, IMAGE, HEADS, DIM = 5, 512, 2, 16


def draw(seed: int, batch: int = 1, spread: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, TEXT + IMAGE, HEADS, DIM, generator=generator) * spread for _ in range(3)]


def constant_blocks(x: torch.Tensor, key: int) -> torch.Tensor:
    """Every image token replaced by its block's mean."""
    image = x[:, TEXT:].unflatten(1, (-1, key)).mean(2, keepdim=True).expand(-1, -1, key, -1, -1).flatten(1, 2)
    return torch.cat([x[:, :TEXT], image], 1)


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.8])
def test_blocks_of_equal_tokens_are_attended_to_exactly(keep: float) -> None:
    q, k, v = draw(0, batch=2)
    grid = cut(IMAGE, TEXT, 64, "cpu")
    k, v = constant_blocks(k * 3, grid.key), constant_blocks(v, grid.key)
    plain = gather_attention(q, k, v, block_map(q, k, grid, keep), grid)
    exact = dense(q, k, v)
    assert (plain - exact).norm() > 0.02 * exact.norm()
    torch.testing.assert_close(sparse_attention(q, k, v, grid, keep), exact, atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 999), st.floats(0.05, 2.0), st.sampled_from([0.25, 0.5, 0.75]))
def test_the_estimated_mass_never_exceeds_the_dropped_one(seed: int, spread: float, keep: float) -> None:
    q, k, v = draw(seed, spread=spread)
    v = torch.zeros_like(v)
    grid = cut(IMAGE, TEXT, 64, "cpu")
    kept = block_map(q, k, grid, keep)
    # Dropped blocks hold the value 1, kept ones 0: the output is the mass that is given to the dropped ones.
    left_out = (~kept).any(1).any(1)[0]
    scores = (q.transpose(1, 2) @ k.transpose(1, 2).mT) / DIM**0.5
    true = (scores.softmax(-1) * ~keep_mask(kept, grid)).sum(-1)
    for block in left_out.nonzero().flatten().tolist():
        v[:, TEXT + block * grid.key : TEXT + (block + 1) * grid.key] = 1
    without = gather_attention(q, k, v, kept, grid)
    added = sparse_attention(q, k, v, grid, keep)
    rows = slice(TEXT, None)
    gained = (added - without)[:, rows].amax(-1).transpose(1, 2)
    assert (gained <= true[..., rows] + 1e-5).all()


def test_with_nothing_dropped_it_is_dense_attention() -> None:
    q, k, v = draw(1)
    grid = cut(IMAGE, TEXT, 64, "cpu")
    torch.testing.assert_close(sparse_attention(q, k, v, grid, 1.0), dense(q, k, v), atol=1e-5, rtol=1e-4)


def test_samples_do_not_see_each_other() -> None:
    q, k, v = draw(2, batch=3)
    grid = cut(IMAGE, TEXT, 64, "cpu")
    together = sparse_attention(q, k, v, grid, 0.5)
    for i in range(3):
        one = sparse_attention(*(x[i : i + 1] for x in (q, k, v)), grid, 0.5)
        torch.testing.assert_close(together[i : i + 1], one, atol=1e-6, rtol=1e-5)
