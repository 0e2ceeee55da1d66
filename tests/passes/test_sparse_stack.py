"""Sparse attention in a stack: batches, requests, caches above, and steps that say how they are computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stack import Stack
from stack.models.schedule import uniform

from ..attention.families.rig import EXACT, NAMES, STEPS, denoiser, given, sample
from ..models.test_hunyuan_video import tiny_denoiser as tiny_video

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


def sparse(name: str, **options: Any) -> Stack:
    return Stack(denoiser(name), steps=STEPS).sparse_attn(0.5, even_if_slower=True, **options)


@by_family
def test_batched_equals_one_by_one(name: str) -> None:
    calls = moving(name, batch=2)
    together = outputs(sparse(name), calls)
    for i in range(2):
        alone = outputs(sparse(name), [sample(call, i) for call in calls])
        for one, both in zip(alone, together, strict=True):
            torch.testing.assert_close(one, both[i : i + 1], atol=EXACT, rtol=EXACT)


def test_a_second_request_starts_from_nothing() -> None:
    stack, calls = sparse("flux"), moving("flux")
    first, counted = outputs(stack, calls), stack.report().passes["sparse_attn"]
    outputs(stack, moving("flux", batch=2)[:4])  # another shape, broken off
    assert all(torch.equal(a, b) for a, b in zip(outputs(stack, calls), first, strict=True))
    assert stack.report().passes["sparse_attn"] == counted


def test_more_shapes_than_are_kept_compiled_is_a_warning() -> None:
    stack = sparse("flux", block=64)
    outputs(stack, moving("flux"))
    assert stack.report().warnings == []
    stack._layers[0].applied.details["flex"].compiled = 33
    expected = "attention was compiled 33 times, only 32 shapes are kept: use fewer sizes"
    assert expected in stack.report().warnings


@pytest.mark.parametrize("order", ["raster", "by_head"])
@pytest.mark.parametrize("free", [True, False], ids=["", "as on an accelerator"])
def test_samples_of_a_batch_are_full_or_cached_each_on_its_own(
    order: str, free: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate decides per sample; the back block then runs for both. One has less text than the other."""
    monkeypatch.setattr("stack.attention.layers.reads_are_free", lambda device: free)

    def gated() -> Stack:
        options = {"block": 64, "even_if_slower": True, "order": order}
        model = tiny_video(num_layers=1, num_single_layers=2)
        stack = Stack(model, steps=14).sparse_attn(0.3, **options)
        return stack.cache("dbcache", front=1, back=1, warmup=2, threshold=0.4)

    calls, stack = moving("hunyuan-video", batch=2, steps=14), gated()
    for number, call in enumerate(calls):  # the second sample moves faster
        call["hidden_states"][1] += 0.03 * number * call["hidden_states"][0]
    together = outputs(stack, calls)
    # Two of three blocks always run: for one sample, for both, or with the third for one.
    ran = [round(6 * record.computed.linears) for record in stack.report().steps]
    assert set(ran) == {4, 5, 6} and ran.count(5) >= 2, ran
    for i in range(2):
        alone = outputs(gated(), [sample(call, i) for call in calls])
        for one, both in zip(alone, together, strict=True):
            torch.testing.assert_close(one, both[i : i + 1], atol=EXACT, rtol=EXACT)


def test_samples_that_a_gate_around_the_model_runs_alone_keep_their_orders() -> None:
    """The second sample changes, the first one stays: from some step on it runs alone."""

    def gated() -> Stack:
        stack = Stack(denoiser("flux"), steps=STEPS)
        options = {"block": 64, "even_if_slower": True, "order": "by_head", "dense_first": 1}
        return stack.sparse_attn(0.3, **options).cache("easycache-published", threshold=0.05, warmup=3)

    calls, stack = moving("flux", batch=2), gated()
    for number, call in enumerate(calls):
        call["hidden_states"][0] = calls[0]["hidden_states"][0]
        call["hidden_states"][1] *= 1 + 0.3 * number
    together = outputs(stack, calls)
    partial = [record.computed.linears for record in stack.report().steps]
    assert any(0 < share < 1 for share in partial), partial
    alone = outputs(gated(), [sample(call, 1) for call in calls])
    for one, both in zip(alone, together, strict=True):
        torch.testing.assert_close(one, both[1:], atol=EXACT, rtol=EXACT)


@by_family
def test_steps_tell_dense_from_sparse_while_the_pass_is_on(name: str) -> None:
    stack = sparse(name).quantize("int8", min_features=8, ends="keep", share=0.3)
    calls = moving(name)
    told = []
    with stack, torch.no_grad():
        target, clock = stack._target, stack.clock
        for call in calls:
            stack.denoiser(**call)
            told.append(clock.context.compute_mode)
    near = max(1, round(0.3 * STEPS))
    ends = [step < near or step >= STEPS - near for step in range(STEPS)]
    dense = [step in (0, STEPS - 1) for step in range(STEPS)]
    assert told == list(zip(ends, dense, strict=True))
    assert target.compute_modes == ()
