"""Anchors and reused maps of sparse attention, in a stack: with a cache above and without."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stack import Stack
from stack.attention import processor
from stack.attention.kernels import sparse_attention
from stack.attention.mass import SAMPLED
from stack.attention.sparse_attn import SparseAttention
from stack.attention.sparsity import ANCHOR, EVERY, FIRST, LAST
from stack.models.schedule import uniform

from ..attention.families.rig import EXACT, NAMES, STEPS, denoiser, given, sample
from ..models.test_hunyuan_video import tiny_denoiser as tiny_video
from .test_sparse_attn import FACTS

SPARSE = STEPS - 2  # steps between the dense ends
HEADS = LAYERS = 2
by_family = pytest.mark.parametrize("name", NAMES)


def moving(name: str, batch: int = 1, steps: int = STEPS) -> list[dict[str, Any]]:
    """A request whose latent goes from one draw to another."""
    calls = [given(name, sigma, batch) for sigma in uniform(steps).sigmas]
    to = torch.randn(calls[0]["hidden_states"].shape, generator=torch.Generator().manual_seed(8))
    for number, call in enumerate(calls):
        call["hidden_states"] = call["hidden_states"] + 0.1 * number * to
    return calls


def outputs(stack: Stack, calls: list[dict[str, Any]]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [stack(**call, return_dict=False)[0] for call in calls]


def figures(stack: Stack) -> dict[str, Any]:
    return stack.report().passes["sparse_attn"]


def sparse(name: str, **options: Any) -> Stack:
    return Stack(denoiser(name), steps=STEPS).sparse_attn(0.5, even_if_slower=True, **options)


@by_family
def test_maps_are_reused_between_anchors_and_come_out_nearly_alike(name: str) -> None:
    calls = moving(name)
    plain = outputs(Stack(denoiser(name), steps=STEPS), calls)
    anew, stack = outputs(sparse(name), calls), sparse(name, reuse_maps=0.05)
    reused = outputs(stack, calls)
    told, per_step = figures(stack), LAYERS * HEADS
    assert told["anchor_calls"] == LAYERS * -(-SPARSE // EVERY)
    assert told["maps_made"] == told["anchor_calls"] * HEADS
    assert told["maps_made"] + told["maps_reused"] + told["maps_renewed"] == SPARSE * per_step
    assert told["maps_reused"] > 0 and 0 < told["dropped_mass"] <= told["dropped_mass_worst"] < 1
    assert told["bytes"] > 0 and told["maps_dropped"] == 0
    off, of_map = (sum(float((a - b).norm()) for a, b in zip(x, plain, strict=True)) for x in (reused, anew))
    assert 0 < off < 1.3 * of_map


@by_family
def test_a_budget_of_nothing_to_spare_is_recomputing(name: str) -> None:
    """Wherever the estimate rises at all the map is made anew; where it does not, the old one is as good."""
    calls = moving(name)
    stack = sparse(name, reuse_maps=1e-9)
    outputs(stack, calls)
    assert figures(stack)["maps_renewed"] > 0
    free = sparse(name, reuse_maps=0.99)
    outputs(free, calls)
    assert figures(free)["maps_renewed"] == 0


@by_family
@pytest.mark.parametrize("options", [{}, {"anchor_keep": 1.0}], ids=["sparse anchors", "dense anchors"])
def test_batched_equals_one_by_one(name: str, options: dict[str, Any]) -> None:
    calls = moving(name, batch=2)
    together = outputs(sparse(name, reuse_maps=0.01, **options), calls)
    for i in range(2):
        alone = outputs(sparse(name, reuse_maps=0.01, **options), [sample(call, i) for call in calls])
        for one, both in zip(alone, together, strict=True):
            torch.testing.assert_close(one, both[i : i + 1], atol=EXACT, rtol=EXACT)


def test_a_second_request_starts_from_nothing() -> None:
    stack, calls = sparse("flux", reuse_maps=0.9), moving("flux")
    first, counted = outputs(stack, calls), figures(stack)
    outputs(stack, moving("flux", batch=2)[:4])  # another shape, broken off
    assert all(torch.equal(a, b) for a, b in zip(outputs(stack, calls), first, strict=True))
    assert figures(stack) == counted


def test_changed_weights_drop_the_maps() -> None:
    stack, calls = sparse("flux", reuse_maps=0.9), moving("flux")
    outputs(stack, calls[:3])
    with torch.no_grad():
        stack.denoiser.transformer_blocks[0].attn.to_q.weight.mul_(1.5)
    outputs(stack, calls[3:4])
    told = figures(stack)
    assert told["maps_dropped"] == LAYERS and told["maps_reused"] == HEADS * LAYERS


def test_dense_anchors_without_reuse_are_diffusers_own_attention() -> None:
    """No cache: every step is full, so nothing is sparse, and that is said."""
    stack, calls = sparse("flux", anchor_keep=1.0), moving("flux")
    plain = outputs(Stack(denoiser("flux"), steps=STEPS), calls)
    assert all(torch.equal(a, b) for a, b in zip(outputs(stack, calls), plain, strict=True))
    assert figures(stack)["dense_calls"] == {FIRST: 2, ANCHOR: 2 * SPARSE, LAST: 2}
    half = sparse("flux", anchor_keep=0.75)
    outputs(half, calls)
    assert "keep=0.5 was never used: every sparse call was on a full step" in half.report().warnings


def test_denser_anchors_are_nearer_to_dense_attention() -> None:
    calls = moving("flux")
    plain = outputs(Stack(denoiser("flux"), steps=STEPS), calls)
    errors = []
    for anchor in (None, 0.75, 1.0):
        stack = sparse("flux", reuse_maps=0.5, anchor_keep=anchor, block=64)
        out = outputs(stack, calls)
        errors.append([float((a - b).norm()) for a, b in zip(out, plain, strict=True)])
    anchors = [1 + EVERY * i for i in range(-(-SPARSE // EVERY))]
    assert errors[2][1] < 1e-3 < errors[1][1] < errors[0][1]
    between = [i for i in range(1, STEPS - 1) if i not in anchors]
    assert [errors[1][i] for i in between] == pytest.approx([errors[0][i] for i in between])


def test_full_steps_that_do_not_pay_sparsely_are_dense_and_still_make_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []

    def watched(*args: Any) -> torch.Tensor:
        kept.append(args[3].shape[-1])
        return sparse_attention(*args)

    monkeypatch.setattr(processor, "sparse_attention", watched)
    stack = sparse("flux", reuse_maps=0.99, anchor_keep=1.0, block=64)
    outputs(stack, moving("flux"))
    told, anchors = figures(stack), LAYERS * -(-SPARSE // EVERY)
    assert told["dense_calls"][ANCHOR] == told["anchor_calls"] == anchors
    assert kept == [3] * (LAYERS * SPARSE - anchors) and told["maps_made"] == anchors * HEADS


def test_more_shapes_than_are_kept_compiled_is_a_warning() -> None:
    stack = sparse("flux", block=64)
    outputs(stack, moving("flux"))
    assert stack.report().warnings == []
    stack.denoiser.transformer_blocks[0].attn.processor.shared.flex.compiled = 33
    expected = "attention was compiled 33 times, only 32 shapes are kept: use fewer sizes"
    assert expected in stack.report().warnings


@pytest.mark.parametrize("keeps", [(0.25, 0.5), (0.5, 0.5)])
def test_back_blocks_are_sparser_on_cached_steps(keeps: tuple[float, float]) -> None:
    """The first block runs on full steps, all of them anchors; the last one on every step."""
    keep, anchor = keeps
    options = {"anchor_keep": anchor, "reuse_maps": 0.9, "block": 64, "even_if_slower": True}
    stack = Stack(denoiser("flux"), steps=14).sparse_attn(keep, **options)
    stack.cache("taylorseer-lite", back=1, interval=3, warmup=2)
    outputs(stack, moving("flux", steps=14))
    kinds = [record.kind for record in stack.report().steps][1:-1]
    full, cached = kinds.count("full"), kinds.count("partial") + kinds.count("cached")
    told = figures(stack)
    assert full and cached and told["anchor_calls"] == 2 * full and told["sparse_calls"] == 2 * full + cached
    assert told["maps_made"] == 2 * full * HEADS and told["maps_reused"] == cached * HEADS
    policy = SparseAttention(keep, block=64, even_if_slower=True).policy
    grid, dense = policy.grid(324, 16, "cpu"), sum(told["dense_calls"].values())
    computed = 2 * full * grid.density(anchor) + cached * grid.density(keep) + dense
    assert told["density"] == pytest.approx(computed / (told["sparse_calls"] + dense))


def test_facts_and_plan_count_anchors() -> None:
    wanted = SparseAttention(0.25, anchor_keep=0.5, reuse_maps=0.02)
    grid, anchors = wanted.policy.grid(4096, 16, "cpu"), -(-44 // EVERY)
    mean = (anchors * grid.density(0.5) + (44 - anchors) * grid.density(0.25) + 6) / 50
    assert wanted.facts_after(FACTS).attention_density == pytest.approx(mean)
    without = SparseAttention(0.25, anchor_keep=0.5).facts_after(FACTS).attention_density
    assert without == pytest.approx(SparseAttention(0.5).facts_after(FACTS).attention_density)
    lines = wanted.describe(FACTS)
    assert "full steps keep 50 %" in lines[3]
    assert f"every {EVERY} steps" in lines[4] and "at most 0.02 more" in lines[4]
    assert f"{SAMPLED} queries per head, {SAMPLED / (2 * 4112):.1%} of dense attention" in lines[4]
    assert SparseAttention(0.25, anchor_keep=0.8).facts_after(FACTS).attention_density == 1.0


def test_samples_of_a_batch_are_full_or_cached_each_on_its_own() -> None:
    """A gate decides per sample; the back block then runs for both, denser for the one whose step is full."""

    def gated() -> Stack:
        options = {"anchor_keep": 1.0, "reuse_maps": 0.5, "block": 64, "even_if_slower": True}
        model = tiny_video(num_layers=1, num_single_layers=2)
        stack = Stack(model, steps=14).sparse_attn(0.3, **options)
        return stack.cache("dbcache", front=1, back=1, warmup=2, threshold=0.4)

    calls, stack = moving("hunyuan-video", batch=2, steps=14), gated()
    for number, call in enumerate(calls):  # the second sample moves faster
        call["hidden_states"][1] += 0.03 * number * call["hidden_states"][0]
    together = outputs(stack, calls)
    kinds = [record.kind for record in stack.report().steps]
    assert kinds.count("partial") >= 2 and kinds.count("cached") >= 1, kinds
    for i in range(2):
        alone = outputs(gated(), [sample(call, i) for call in calls])
        for one, both in zip(alone, together, strict=True):
            torch.testing.assert_close(one, both[i : i + 1], atol=EXACT, rtol=EXACT)


@by_family
def test_steps_tell_dense_from_sparse_while_the_pass_is_on(name: str) -> None:
    stack = sparse(name).quantize("int8", min_features=8, ends="keep", share=0.3)
    calls = moving(name)
    told = []
    with stack, torch.no_grad():
        clock = stack._target.clock
        for call in calls:
            stack.denoiser(**call)
            told.append(clock.tick.compute_mode)
    near = max(1, round(0.3 * STEPS))
    ends = [step < near or step >= STEPS - near for step in range(STEPS)]
    dense = [step in (0, STEPS - 1) for step in range(STEPS)]
    assert told == list(zip(ends, dense, strict=True))
    assert clock.compute_modes == ()
