"""FlexAttention as CUDA runs it, on CPU tensors: every shape is compiled, is what its map says, and is let go."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

from stack.attention.flex import Flex
from stack.attention.gathered import gather_attention
from stack.attention.kernels import dense
from stack.attention.maps import Grid, cut, keep_mask
from stack.attention.remainder import add_remainder
from stack.core.errors import StackError

from .mapped import block_map, flex_uncompiled

TWELVE = [*((n, 128) for n in range(512, 1536, 128)), (500, 77), (640, 5), (770, 130), (1025, 0)]
GRIDS = {
    "text shifts the blocks": cut(900, 77, None, "cuda"),
    "on tiles, wide rows": cut(901, 128, 256, "cuda"),
    "text last": cut(700, 70, None, "cuda", text_last=True),
    "short tiles": Grid(text=5, image=430, key=32, group=3),
}
Qkv = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """As pipelines run: without gradients."""
    counters.clear()
    with torch.no_grad():
        yield


def qkv(grid: Grid, batch: int = 1, seed: int = 0) -> Qkv:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, grid.tokens, 2, 16, generator=generator) for _ in range(3))
    return 2 * q, k, v


def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def gathered(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kept: torch.Tensor, grid: Grid, seen: torch.Tensor | None
) -> torch.Tensor:
    """What a CPU computes: the gather kernel with the remainder."""
    lse = torch.empty(len(q), q.shape[2], grid.end - grid.start)
    return add_remainder(gather_attention(q, k, v, kept, grid, lse, seen), lse, q, k, v, kept, grid)


def assert_compiled(copies: int) -> None:
    """Each of the copies was traced once, as one graph, and nothing was given up."""
    assert counters["stats"]["unique_graphs"] == copies
    assert not counters["graph_break"] and not counters["unimplemented"] and not counters["recompiles"]


def check(flex: Flex, image: int, text: int) -> None:
    grid = cut(image, text, None, "cuda")
    q, k, v = qkv(grid)
    kept = block_map(q, k, grid, 0.5)
    out = flex(q, k, v, kept, grid)
    torch.testing.assert_close(out, masked(q, k, v, keep_mask(kept, grid)), atol=1e-5, rtol=0)
    assert (out - dense(q, k, v)).abs().max() > 0.1


@pytest.mark.slow
def test_twelve_shapes_are_all_compiled() -> None:
    """Of one function that is compiled, the ninth shape and all behind it would run eagerly."""
    flex = Flex("aot_eager", remainder=False)
    for _ in range(2):
        for shape in TWELVE:
            check(flex, *shape)
    assert flex.compiled == 12
    assert_compiled(12)


def test_a_real_compiler_skips_what_the_lists_leave_out() -> None:
    """Compiled for a CPU, FlexAttention reads the block lists and asks no mask function inside full tiles."""
    check(Flex(remainder=False), 300, 77)
    assert_compiled(1)


@pytest.mark.parametrize(("keep", "compiled"), [(0.25, False), (0.5, True), (0.75, False)])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize("hidden", [False, True])
def test_with_the_remainder_it_is_what_a_cpu_computes(grid: Grid, keep: float, compiled: bool, hidden: bool) -> None:
    q, k, v = qkv(grid, batch=2)
    seen = torch.ones(2, grid.tokens, dtype=torch.bool) if hidden else None
    if seen is not None:
        seen[0, grid.tokens - 3 :] = False
        seen[1, grid.end : grid.end + 1] = False
    kept = block_map(q, k, grid, keep)
    attend = Flex("aot_eager") if compiled else flex_uncompiled
    out, expected = attend(q, k, v, kept, grid, seen), gathered(q, k, v, kept, grid, seen)
    assert (out - expected).norm() <= 1e-4 * expected.norm()
    without = gather_attention(q, k, v, kept, grid, seen=seen)
    assert (out - without).norm() > 0.02 * expected.norm()


def test_layouts_have_copies_of_their_own() -> None:
    """Fused projections hand over views; another number of kept blocks is the same shape."""
    grid = cut(512, 128, None, "cuda")
    flex, (q, k, v) = Flex("aot_eager"), qkv(grid)
    fused = torch.cat([q, k, v], -1).chunk(3, -1)
    for keep in (0.5, 0.75):
        kept = block_map(q, k, grid, keep)
        for _ in range(2):
            torch.testing.assert_close(flex(*fused, kept, grid), flex(q, k, v, kept, grid), atol=1e-6, rtol=0)
    assert flex.compiled == 2
    assert_compiled(2)


def test_copies_are_bounded_and_the_last_used_stay() -> None:
    flex = Flex("aot_eager", most=2)
    for image in (256, 384, 256, 512, 256):
        grid = cut(image, 0, None, "cuda")
        q, k, v = qkv(grid)
        flex(q, k, v, block_map(q, k, grid, 0.5), grid)
    assert flex.compiled == 3 and len(flex._copies) == 2


def test_what_was_compiled_goes_with_its_owner() -> None:
    graphs: list[weakref.ref[Any]] = []

    def watched(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        graphs.append(weakref.ref(graph))
        return graph.forward

    flex = Flex(watched)
    for image in (256, 384):
        grid = cut(image, 0, None, "cuda")
        q, k, v = qkv(grid)
        flex(q, k, v, block_map(q, k, grid, 0.5), grid)
    gc.collect()
    assert [graph() is None for graph in graphs] == [False, False]
    del flex
    gc.collect()
    assert [graph() is None for graph in graphs] == [True, True]


def test_uncompiled_it_is_an_error_and_never_dense() -> None:
    grid = cut(256, 0, None, "cuda")
    q, k, v = qkv(grid)
    kept = block_map(q, k, grid, 0.5)
    with torch.compiler.set_stance("force_eager"), pytest.raises(StackError, match=r"needs torch\.compile"):
        Flex("aot_eager")(q, k, v, kept, grid)
