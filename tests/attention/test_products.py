"""Attention by matrix products against float64: its bound, the queries it hands to torch, and what it is asked for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from boundbench.documented import moved_scores_bound
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from stack.attention import products as subject
from stack.attention.products import QUERIES, pays, products, shifts
from stack.core.facts import Machine

UNIT = 2.0**-9  # of rounding to bf16
ZEN4 = Machine("cpu", vector="AVX512", fast_bf16=True)


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs (B, S, H, D) and scores (B, H, S, S) in float64."""
    query, keys, values = (x.double().transpose(1, 2) for x in (q, k, v))
    scores = query @ keys.mT / q.shape[-1] ** 0.5
    return (scores.softmax(-1) @ values).transpose(1, 2), scores


def draw(seed: int, tokens: int, size: int, sharp: float, offset: float, heads: int = 2) -> list[torch.Tensor]:
    """Queries, keys and values in bf16; keys share an offset, some queries see one key much better than all others."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, tokens, heads, size, generator=generator) for _ in range(3))
    q[:, ::5] = k.roll(1, 1)[:, ::5] * 2
    return [x.bfloat16() for x in (q * sharp, k + offset, v * 3 + 1)]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 999),
    tokens=st.sampled_from([1, 2, 63, 64, 65, 127, 300, 515]),
    size=st.sampled_from([16, 40, 64, 128]),
    sharp=st.floats(0.0, 6.0),
    offset=st.sampled_from([0.0, 0.5, -4.0]),
)
def test_outputs_are_within_the_bound_of_rounded_scores(
    seed: int, tokens: int, size: int, sharp: float, offset: float
) -> None:
    q, k, v = draw(seed, tokens, size, sharp, offset)
    right, scores = exact(q, k, v)
    out = products(q, k, v)
    away = (scores - shifts(q, k).double()).abs()
    # Scores that far below the largest one have no weight to speak of, however they are rounded.
    away = away.masked_fill(scores < scores.amax(-1, keepdim=True) - 20, 0.0).amax(-1)
    # Rounded are the scores, the weights, and the output before and after it is divided by their sum.
    radius = (v.double() - v.double().mean(1, keepdim=True)).norm(dim=-1).amax(1)[..., None]
    most = moved_scores_bound((away + 1) * UNIT * 1.02, radius).transpose(1, 2)
    off, rounding = (out.double() - right).norm(dim=-1), 4 * UNIT * right.norm(dim=-1)
    assert (off <= most + rounding + 1e-3).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 999), st.floats(0.0, 3.0), st.integers(1, 40))
def test_moved_scores_move_an_output_no_further(seed: int, moved: float, keys: int) -> None:
    """The bound itself, with the worst signs: along each direction, values above the mean up and those below down."""
    generator = torch.Generator().manual_seed(seed)
    scores, values = (
        torch.randn(keys, generator=generator).double() * 3,
        torch.randn(keys, generator=generator).double(),
    )
    weights = scores.softmax(0)
    worst = (scores + moved * (values - (weights * values).sum()).sign()).softmax(0)
    radius = (values.max() - values.min()) / 2
    assert abs(float(((worst - weights) * values).sum())) <= moved_scores_bound(moved, float(radius)) + 1e-12


def test_the_bound_of_moved_scores_is_reached_by_two_values() -> None:
    first = 1 / (1 + math.exp(0.4))
    moved = first * math.exp(0.4) / (first * math.exp(0.4) + (1 - first) * math.exp(-0.4))
    assert 2 * (moved - first) == pytest.approx(moved_scores_bound(0.4, 1.0), rel=1e-9)


@pytest.mark.parametrize("case", ["one key far above its run", "every shift far too large"])
def test_where_a_shift_is_far_off_the_largest_score_is_taken(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights would overflow, or all be 0. Torch's kernel is not asked."""
    q, k, v = draw(0, 300, 64, 1.0, 0.0, heads=1)
    if case == "one key far above its run":
        k[:, 70], q[:] = 30.0, 1.0  # scores of 240, the mean of its run 3.75
    else:
        monkeypatch.setattr(subject, "ABOVE", 400.0)
    asked = []
    torchs = subject.exactly
    monkeypatch.setattr(subject, "exactly", lambda *given: asked.append(1) or torchs(*given))
    right, _ = exact(q, k, v)
    out = products(q, k, v)
    assert asked == []
    torch.testing.assert_close(out.double(), right, atol=0.02, rtol=0.02)


def test_the_log_sum_exp_is_that_of_the_scores() -> None:
    q, k, v = draw(3, 200, 64, 1.0, 0.5, heads=1)
    attend = subject.products_of(q, k)
    _, lse = attend(q[0, :50, 0], k[0, :, 0], v[0, :, 0], (0, 0, slice(0, 50)))
    torch.testing.assert_close(lse.double(), exact(q, k, v)[1].logsumexp(-1)[0, 0, :50], atol=0.02, rtol=0)


def test_nothing_is_held_that_is_longer_than_the_scores_of_a_few_queries() -> None:
    """At 75,600 tokens and 40 heads the products of all queries with mean keys would take 7 GB."""
    q, k, v = draw(0, 2048, 8, 1.0, 0.0, heads=16)
    with Largest() as seen:
        products(q, k, v)
    assert seen.numbers == QUERIES * 2048


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


def test_a_query_that_is_not_a_number_stays_one_and_spoils_no_other() -> None:
    q, k, v = draw(1, 300, 64, 1.0, 0.0, heads=1)
    q[0, 7] = math.nan
    out = products(q, k, v)
    assert out[0, 7].isnan().all() and out[0, 8:].isfinite().all() and out[0, :7].isfinite().all()


def test_it_is_for_bf16_on_cpus_with_fast_products_and_no_amx() -> None:
    assert pays(ZEN4, torch.bfloat16)
    assert not pays(ZEN4, torch.float32)
    assert not pays(Machine("cpu", vector="AVX512", fast_bf16=True, amx=True), torch.bfloat16)
    assert not pays(Machine("cpu", vector="AVX2", fast_bf16=False), torch.bfloat16)
    assert not pays(Machine("cuda", capability=(9, 0)), torch.bfloat16)
