"""The order in which a sparse attention pass cuts the latent's tokens into blocks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stack.attention.sparse_attn import SparseAttention
from stack.attention.token_order import BY_HEAD, ORDERS

from ..clocks import advance
from ..conftest import inputs, tiny_denoiser
from .test_sparse_attn import FACTS, SIDE, SMALL, call, installed, target_of


def test_each_head_has_its_order_and_the_report_says_which() -> None:
    """The same request with all heads in one order differs, with as many blocks; dense steps do not."""
    plain, made = call(target_of(tiny_denoiser()), 1.0), {}
    for order in (BY_HEAD, *ORDERS):
        target, _, applied = installed(wanted=replace(SMALL, order=order))
        assert torch.equal(call(target, 1.0), plain)
        made[order] = call(target, 0.5)
        figures = applied.report()
        shares = figures["token_orders"]
        assert sum(shares.values()) == pytest.approx(1) and (order == BY_HEAD or shares == {order: 1.0})
        assert figures["density"] == pytest.approx((2 + 2 * (20 * 340 + 320 * (3 * 64 + 20)) / 340**2) / 4)
    assert len({float(out.sum()) for out in made.values()}) == len(made)


@torch.inference_mode()
def test_tokens_that_lie_on_no_grid_stay_as_they_lie() -> None:
    """Positions in another order, as of a picture beside its condition."""
    made = []
    for order in ("raster", BY_HEAD, "hilbert"):
        target, _, applied = installed(wanted=replace(SMALL, order=order))
        context, given = advance(target.clock, 0.5, (1, SIDE * SIDE, 12)), inputs(0.5, SIDE)
        given["img_ids"] = given["img_ids"].flip(0)
        target.journal.begin(context)
        target.conditions.begin(context, given)
        made.append(target.denoiser(**given, return_dict=False)[0])
        assert applied.report()["token_orders"] == {"raster": 1.0}
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    assert target.journal.warnings == ["the tokens lie on no known grid: no hilbert order, they stay as they lie"]


def test_an_order_of_tokens_whose_grid_is_not_known_is_refused_in_the_plan() -> None:
    unknown = replace(FACTS, lacks={"grid": "written by hand"})
    (finding,) = SparseAttention(order="hilbert").check(unknown)
    assert finding.replacement == SparseAttention(order="raster")
    assert "no hilbert order of tokens whose grid is not known" in str(finding) and "written by hand" in str(finding)
    assert SparseAttention(order=BY_HEAD).check(unknown) == [] and SparseAttention().check(unknown) == []
    assert SparseAttention(order=BY_HEAD).describe(unknown)[-1] == (
        "tokens are cut into blocks as they lie, their grid is not known: written by hand"
    )


def test_by_head_is_chosen_where_there_are_many_tokens_and_many_sparse_steps() -> None:
    def words(tokens: int, steps: int = 50, **options: str) -> str:
        return SparseAttention(**options).describe(replace(FACTS, image_tokens=tokens, steps=steps))[-1]

    by_head = "each head has its tokens in the order that serves it best (raster, transposed, hilbert), tried once"
    assert words(16_384).startswith(by_head) and words(2_048).startswith(by_head)
    assert words(2_047) == words(16_384, order="raster") == "tokens are cut into blocks in raster order"
    assert words(256, order=BY_HEAD).startswith(by_head)
    assert words(2_048, steps=10).startswith(by_head)  # 8 between one dense step at each end
    assert words(2_048, steps=9) == words(0, steps=9) == "tokens are cut into blocks in raster order"
    assert words(0) == (
        "tokens are cut into blocks in raster order, from 2,048 on in the one that serves each head best"
    )
