"""What SpargeAttn's kernel is given, held to a stand-in that computes attention by the tiles it is told."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from stack.attention import sparse_attn as subject
from stack.attention.block_sparse import BlockSparse
from stack.attention.flex import Flex
from stack.attention.gathered import gather_attention
from stack.attention.head_orders import HeadOrders
from stack.attention.layers import AttentionCall
from stack.attention.maps import Grid, keep_mask
from stack.attention.sparge import HOPPER, sparge_attention, tiles_of, unfit
from stack.attention.sparse_attn import SparseAttention
from stack.attention.sparsity import SPARGE, SparsityPolicy
from stack.attention.tally import Tally
from stack.core.facts import Machine
from stack.core.plan import explain, make_plan
from stack.model_facts import facts_of
from stack.models.layout import SelfAttention
from stack.models.schedule import uniform
from stack.models.sdpa import SdpaCall
from stack.runtime.report import Journal
from stack.runtime.target import Target

from ..clocks import advance, clock_of
from ..conftest import tiny_denoiser
from ..test_plan import FACTS
from ..wirings import FLUX
from .test_kernels import uneven_map

GRIDS = {
    "text of whole tiles": Grid(text=128, image=512, key=128, group=1),
    "text in front": Grid(text=64, image=448, key=128, group=1),
    "text behind": Grid(text=64, image=448, key=128, group=1, text_last=True),
    "no text": Grid(text=0, image=384, key=128, group=1),
}


def stand_in(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask_id: torch.Tensor) -> torch.Tensor:
    """(B, H, S, D), every tensor contiguous; attention by the tiles whose entry is not 0."""
    assert q.is_contiguous() and k.is_contiguous() and v.is_contiguous() and mask_id.dtype == torch.int8
    assert v.abs().max() < 512, "values within the range of fp16"
    rows, columns = q.shape[2] // mask_id.shape[2], k.shape[2] // mask_id.shape[3]
    mask = mask_id.bool().repeat_interleave(rows, 2).repeat_interleave(columns, 3)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Any = ModuleType("spas_sage_attn")
    made.block_sparse_sage2_attn_cuda = stand_in
    monkeypatch.setitem(sys.modules, "spas_sage_attn", made)
    monkeypatch.setattr(subject, "importable", lambda _: True)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("capability", [(8, 0), HOPPER])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_it_computes_what_the_map_says(grid: Grid, capability: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, grid.tokens, 3, 64, generator=generator) for _ in range(3))
    v[..., 0] *= 1e5  # beyond fp16
    kept = uneven_map(grid)
    made, right = sparge_attention(q, k, v, kept, grid, capability), gather_attention(q, k, v, kept, grid)
    torch.testing.assert_close(made, right, atol=1e-2, rtol=1e-3)


def test_tiles_are_128_queries_by_64_keys_and_64_by_128_on_hopper() -> None:
    grid = GRIDS["no text"]
    kept = uneven_map(grid)
    assert tiles_of(kept, grid, (8, 9)).shape == (2, 3, 3, 6) and tiles_of(kept, grid, HOPPER).shape == (2, 3, 6, 3)
    assert torch.equal(tiles_of(kept, grid, (8, 9))[..., ::2].bool(), kept)
    assert torch.equal(tiles_of(kept, grid, HOPPER)[:, :, 1::2].bool(), kept)


def test_calls_it_cannot_take() -> None:
    assert unfit(4608, None) == "" and unfit(4600, None) == "SpargeAttn takes whole tiles of 128 tokens"
    assert unfit(4608, torch.ones(1, 4608, dtype=torch.bool)) == "SpargeAttn takes no mask"


@pytest.mark.usefixtures("installed")
def test_the_plan_takes_another_kernel_where_it_cannot_run() -> None:
    hopper = Machine("cuda", capability=(9, 0))
    facts = replace(FACTS, dtype="bfloat16", image_tokens=16384, text_tokens=512, head_dim=128, machine=hopper)
    wanted = SparseAttention(0.4, kernel="sparge")
    assert make_plan(facts, [wanted]).passes()[0] == wanted
    for changed, why in (
        ({"machine": Machine("cuda", capability=(12, 0))}, "got compute capability (12, 0)"),
        ({"machine": Machine("cpu")}, "expected a GPU of compute capability 8.0 to 9.0, got cpu"),
        ({"head_dim": 96}, "expected heads of 64 or 128, got 96"),
        ({"dtype": "float32"}, "expected fp16 or bf16, got float32"),
    ):
        told = explain(plan := make_plan(replace(facts, **changed), [wanted]))
        assert why in told and all(p != wanted for p in plan.passes())


def test_without_the_package_the_plan_says_how_to_get_it() -> None:
    machine = Machine("cuda", capability=(9, 0))
    facts = replace(FACTS, dtype="bfloat16", image_tokens=16384, head_dim=128, machine=machine)
    told = explain(make_plan(facts, [SparseAttention(0.4, kernel="sparge")]))
    assert "build it from https://github.com/thu-ml/SpargeAttn" in told


@pytest.mark.usefixtures("installed")
def test_a_call_goes_to_it_or_is_counted_as_dense() -> None:
    """256 tokens of the latent with 128 of text are three tiles of 128, with 64 of text two and a half."""
    clock = clock_of(uniform(10))
    advance(clock, 1.0, (1, 256, 12))
    model = tiny_denoiser()
    target, tally = Target(model, FLUX, facts_of(model, FLUX, None, 10), clock, Journal(), lambda: 0), Tally(clock)
    policy = SparsityPolicy(0.5, block=64, first=0, last=0, even_if_slower=True, kernel=SPARGE)
    blocks = BlockSparse(policy, Machine("cuda", capability=HOPPER), tally, Flex(), HeadOrders(target))
    for words, taken, left in ((128, True, {}), (64, False, {"SpargeAttn takes whole tiles of 128 tokens": 1})):
        tally.reset()
        q, k, v = (torch.randn(1, 2, 256 + words, 64, generator=torch.Generator().manual_seed(n)) for n in range(3))
        call = AttentionCall("attn", SelfAttention("before"), SdpaCall(q, k, v), 256)
        reason = blocks.unfit(call)
        blocks.note(reason, call)
        assert (reason == "") is taken and dict(tally.left) == left
        recorded = AttentionCall("attn", SelfAttention("before"), SdpaCall(q, k, v.clone().requires_grad_()), 256)
        assert blocks.unfit(recorded) == "gradients are recorded"
        if taken:
            out = blocks.run(*call.sdpa.plain(), call)
            mask = keep_mask(blocks._kept, Grid(words, 256, 64, 1))
            right = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
            torch.testing.assert_close(out, right, atol=1e-4, rtol=1e-3)
