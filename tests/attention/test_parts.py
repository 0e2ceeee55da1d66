"""A CPU computes maps and remainders in parts that fit its allocator: how many changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stack.attention import maps
from stack.attention.flex import Flex
from stack.attention.head_orders import best_orders
from stack.attention.kernels import dense, sparse_attention
from stack.attention.maps import cut
from stack.attention.policy_map import PolicyMap, policy_map
from stack.attention.sparsity import SparsityPolicy
from stack.attention.token_order import tables

GRID, SHAPE = cut(576 + 20, 5, None, "cpu"), (4, 149)  # two rows and a shorter third, tokens left over
POLICIES = {
    "keep": SparsityPolicy(0.3),
    "mass": SparsityPolicy(0.0, max_mass=0.3, even_if_slower=True),
    "error": SparsityPolicy(0.0, max_error=0.1, even_if_slower=True),
}


def tensors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, GRID.tokens, 3, 16, generator=generator) * spread for spread in (3.0, 1.0, 1.0)]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("held", [1, 2_000, 20_000])
def test_a_map_in_parts_is_the_same(name: str, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def made() -> PolicyMap:
        return policy_map(POLICIES[name], *tensors(), GRID, None)

    whole = made()
    monkeypatch.setitem(maps.HELD, "cpu", held)
    parts = made()
    assert torch.equal(parts.kept, whole.kept)
    torch.testing.assert_close(parts.dropped, whole.dropped)
    assert (parts.error is None) == (name != "error")
    if whole.error is not None:
        torch.testing.assert_close(parts.error, whole.error)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_that_drop_nothing_are_exact_in_every_dtype(dtype: torch.dtype) -> None:
    given = [x.to(dtype) for x in tensors()]
    kept = policy_map(POLICIES["keep"], *given, GRID, None).kept
    kept[0, 1], kept[1, :, 0] = True, True
    made, exact = sparse_attention(*given, kept, GRID, Flex()), dense(*(x.double() for x in given))
    assert made.isfinite().all()
    whole = [made[0, :, 1], made[1, GRID.start : GRID.start + GRID.group * GRID.key]]
    right = [exact[0, :, 1], exact[1, GRID.start : GRID.start + GRID.group * GRID.key]]
    for one, other in zip(whole, right, strict=True):
        torch.testing.assert_close(one.double(), other, atol=0.04, rtol=0.02)


@pytest.mark.parametrize("held", [1, 20_000])
def test_attention_in_parts_is_the_same(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tensors()
    kept = policy_map(POLICIES["keep"], *given, GRID, None).kept
    whole = sparse_attention(*given, kept, GRID, Flex())
    monkeypatch.setitem(maps.HELD, "cpu", held)
    torch.testing.assert_close(sparse_attention(*given, kept, GRID, Flex()), whole)


def test_a_long_video_fits_an_accelerator() -> None:
    """75,600 tokens in 40 heads (Wan 2.1 14B at 720p): nothing that is made holds more than half a GB in fp32."""
    grid, largest = cut(75_600, 0, None, "meta"), 0
    q, k, v = (torch.empty(1, grid.tokens, 40, 128, dtype=torch.bfloat16, device="meta") for _ in range(3))

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max([largest, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
            return out

    with Watch():
        policy_map(SparsityPolicy(0.5), q, k, v, grid, None)
    assert max(q.numel(), maps.HELD_ELSEWHERE) >= largest


def test_orders_by_head_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    given, found = tensors(), tables(SHAPE, GRID)

    def chosen() -> torch.Tensor:
        return best_orders(POLICIES["keep"], lambda: tuple(given), found, GRID)

    whole = chosen()
    assert len(whole.unique()) > 1
    monkeypatch.setitem(maps.HELD, "cpu", 1)
    assert torch.equal(chosen(), whole)
