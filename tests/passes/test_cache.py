"""The cache on a real diffusers model."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from stack import Stack, StackError
from stack.caching.schedules import Interval
from stack.compat.noise import rounding_floor

from ..conftest import PROMPT, inputs, picture, tiny_denoiser, tiny_pipe

STEPS = 14


def kinds(stack: Stack) -> str:
    return "".join(record.kind[0] for record in stack.report().steps)


def test_full_and_cached_steps_follow_the_schedule() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("svd", interval=4, warmup=2)
    picture(stack, STEPS)
    assert kinds(stack) == "ffcccfcccfcccf"
    assert stack.report().full_steps == len(Interval(4, 2).full_steps(STEPS))


def test_a_calibrated_mask_is_obeyed_and_ordered() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("svd", full_steps=(7, 0, 3), steps=STEPS)
    picture(stack, STEPS)
    assert kinds(stack) == "fccfcccfcccccc"


def test_full_steps_are_placed_by_noise_level() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("toca", count=5)
    assert "5 of 14 steps full (placed by noise level: 0 4 8 11 13)" in stack.explain()
    picture(stack, STEPS)
    assert kinds(stack) == "fpppfpppfppfpf"


def test_no_block_runs_on_a_cached_step() -> None:
    pipe = tiny_pipe()
    ran: list[int] = []
    pipe.transformer.transformer_blocks[0].norm1.register_forward_hook(lambda *_: ran.append(1))
    pipe.transformer.single_transformer_blocks[0].norm.register_forward_hook(lambda *_: ran.append(1))
    stack = Stack(pipe, steps=STEPS).cache("svd", interval=4, warmup=2)
    picture(stack, STEPS)
    assert len(ran) == 2 * stack.report().full_steps == 2 * 5


def test_every_step_full_changes_nothing() -> None:
    pipe = tiny_pipe()
    before = picture(pipe, STEPS)
    with Stack(pipe, steps=STEPS).cache("svd", interval=1) as stack:
        assert torch.equal(picture(stack, STEPS), before)
        assert "0 of 14 steps cached" in str(stack.report())


def test_the_second_request_equals_the_first() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("svd", interval=4)
    first = picture(stack, STEPS)
    picture(stack, STEPS, prompt="a green circle", seed=9)
    assert torch.equal(picture(stack, STEPS), first)


def test_a_new_resolution_starts_afresh() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("svd", interval=4)
    first = picture(stack, STEPS)
    large = stack(PROMPT, height=32, width=32, num_inference_steps=STEPS, output_type="pt").images
    assert large.shape[-1] == 32
    assert torch.equal(picture(stack, STEPS), first)
    assert stack.report().passes["cache"]["dropped"] == 0


def test_batched_equals_one_by_one() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("svd", interval=4)
    prompts = [PROMPT, "a green circle", "a cyan star on a white background"]
    together = picture(stack, STEPS, prompt=prompts)
    for i, prompt in enumerate(prompts):
        torch.testing.assert_close(together[i : i + 1], picture(stack, STEPS, prompt=prompt, seed=1 + i))


def test_threads_equal_one_after_the_other() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("svd", interval=4)
    alone = [picture(stack, STEPS, seed=s) for s in (1, 5)]
    got: dict[int, torch.Tensor] = {}

    def work(seed: int) -> None:
        got[seed] = picture(stack, STEPS, seed=seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(got[1], alone[0]) and torch.equal(got[5], alone[1])


def test_guidance_branches_keep_their_own_state() -> None:
    pipe = tiny_pipe()

    def guided(run: Any) -> torch.Tensor:
        return run(
            PROMPT,
            negative_prompt="a green circle",
            true_cfg_scale=3.0,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(1),
            output_type="pt",
        ).images

    exact = guided(pipe)
    with Stack(pipe, steps=STEPS).cache("svd-published", interval=2, gains=(1.0, 1.0)) as stack:
        error = (guided(stack) - exact).square().mean()
        branches = [record.branch for record in stack.report().steps]
        assert branches == ["cond", "uncond"] * STEPS
        assert stack.report().passes["cache"]["dropped"] == 0
        per_branch = 2 * 64 * 128 * 4
        assert stack.report().cache_bytes == 2 * per_branch
    assert float(error) < 1e-4


def test_the_same_steps_are_full_in_every_dtype() -> None:
    seen = set()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        stack = Stack(tiny_pipe().to(dtype), steps=STEPS).cache("svd", interval=3)
        picture(stack, STEPS)
        seen.add(kinds(stack))
    assert len(seen) == 1


def test_prediction_error_is_measured_where_cached_runs_end() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("svd", interval=4, warmup=2)
    picture(stack, STEPS)
    records = stack.report().steps
    assert [r.step for r in records if r.error is not None] == [1, 5, 9, 13]
    assert all(0 < r.error < 0.5 for r in records if r.error is not None)


def test_another_number_of_steps_keeps_full_steps_at_their_noise_levels() -> None:
    stack = Stack(tiny_pipe(), steps=28).cache("svd", full_steps=(0, 5, 10, 15, 20), steps=50)
    assert "calibrated for 50 steps, the plan has 28" in stack.explain()
    assert "error estimated at 0.99 of the calibrated one" in stack.explain()
    picture(stack, 28)
    assert [r.step for r in stack.report().steps if r.kind == "full"] == [0, 3, 6, 8, 11]


def test_another_shift_keeps_full_steps_at_their_noise_levels() -> None:
    levels = tuple(1 - i / STEPS for i in range(STEPS))
    full = (0, 3, 6, 9)
    stack = Stack(tiny_denoiser(), steps=STEPS, shift=3.0)
    stack.cache("svd", full_steps=full, steps=STEPS, full_at=tuple(levels[i] for i in full))
    shifted = [3 * u / (1 + 2 * u) for u in levels]
    with torch.no_grad():
        for sigma in shifted:
            stack(**inputs(sigma))
    ran = [r.step for r in stack.report().steps if r.kind == "full"]
    assert ran == sorted({min(range(STEPS), key=lambda i: abs(shifted[i] - levels[f])) for f in full})
    assert ran != list(full)


@pytest.mark.parametrize(
    ("method", "steps", "pattern"),
    [
        ("svd", 4, "ffcf"),
        ("svd", 6, "fcfcff"),
        ("svd", 8, "fcfcfcff"),
        ("svd-published", 8, "fcfcfcff"),
        ("fora", 8, "fcfcfcff"),  # reuse has its own places
    ],
)
def test_few_steps_cache_whole_ones_and_say_what_that_saves(method: str, steps: int, pattern: str) -> None:
    stack = Stack(tiny_pipe(), steps=steps).cache(method)
    picture(stack, steps)
    assert kinds(stack) == pattern
    told = "\n".join(stack.report().warnings)
    assert f"can save at most {steps / pattern.count('f'):.2f}x" in told
    assert f"{pattern.count('f')} of {steps} steps run in full: {' '.join(full_of(pattern))} (rule few-steps)" in told


def full_of(pattern: str) -> list[str]:
    return [str(step) for step, kind in enumerate(pattern) if kind == "f"]


@pytest.mark.parametrize(("steps", "pattern"), [(4, "fppf"), (6, "fpfppf"), (8, "fpfppfpf")])
def test_without_a_corrector_few_steps_run_part_of_the_blocks(steps: int, pattern: str) -> None:
    stack = Stack(tiny_denoiser(), steps=steps).cache("svd")
    with torch.no_grad():
        for step in range(steps):
            stack(**inputs(1 - step / steps))
    assert kinds(stack) == pattern
    front_and_back = 1 / 2  # one of the two blocks
    told = f"can save at most {steps / (steps / 2 * (1 + front_and_back)):.2f}x"
    assert told in "\n".join(stack.report().warnings)


def test_a_single_step_has_nothing_to_cache() -> None:
    stack = Stack(tiny_pipe(), steps=1).cache("svd")
    picture(stack, 1)
    assert kinds(stack) == "f"
    assert "has none to cache" in "\n".join(stack.report().warnings)


def test_rounded_activations_shrink_what_is_forecast() -> None:
    naive = Stack(tiny_pipe(), steps=STEPS).quantize("int8", min_features=16).cache("taylorseer")
    ran = naive.plan.passes()[-1].policy
    assert (ran.forecast.coordinate, ran.forecast.basis) == ("time", "newton")
    (low, floor), (high, _) = ran.noise
    assert (low, high) == (0.0, 1.0) and floor == pytest.approx(rounding_floor(8, 128))
    assert f"about {floor:.1%} is noise" in naive.explain()
    for options in ({"noise": ((0.5, 0.02),), "basis": "newton"}, {"order": 0}, {"full_steps": (0, 4), "steps": STEPS}):
        told = Stack(tiny_pipe(), steps=STEPS).quantize("int8", min_features=16).cache("taylorseer", **options)
        assert "% is noise" not in told.explain()


@pytest.mark.parametrize("method", ["svd", "fora", "first-block", "easycache-published", "toca"])
def test_nothing_that_is_kept_holds_a_graph(method: str) -> None:
    drawn, before = [], tiny_denoiser()(**inputs()).sample
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients), Stack(tiny_denoiser(), steps=STEPS).cache(method) as stack:
            made = [stack.denoiser(**inputs(1 - i / STEPS)).sample for i in range(STEPS)]
            assert not made[0].requires_grad and not made[-1].requires_grad
            assert not any("gradients" in line for line in stack.report().warnings)
        drawn.append(made[-1])
    assert torch.equal(*drawn) and before.requires_grad


@pytest.mark.parametrize("asks", ["hidden_states", "encoder_hidden_states", "controlnet_block_samples", "training"])
def test_gradients_that_are_asked_for_are_refused_and_not_silently_zero(asks: str) -> None:
    given, weight = inputs(), torch.ones(1, requires_grad=True)
    if asks == "controlnet_block_samples":
        given[asks] = [torch.zeros(1, 64, 128, requires_grad=True)]
    elif asks != "training":
        given[asks].requires_grad_()
    with Stack(tiny_denoiser().train(asks == "training"), steps=STEPS).cache("svd") as stack:
        sample = stack.denoiser(**given).sample
        with torch.no_grad():
            assert torch.equal(sample, stack.denoiser(**given).sample)
        with pytest.raises(StackError, match="under a cache have no gradient"):
            (sample.sum() * weight).backward()
    assert stack.denoiser(**given).sample.requires_grad


def test_a_bare_denoiser_caches_by_noise_level() -> None:
    denoiser = tiny_denoiser()
    stack = Stack(denoiser, steps=12).cache("svd", interval=3, warmup=1)
    with torch.no_grad():
        for sigma in [1 - i / 12 for i in range(12)]:
            stack(**inputs(sigma))
    assert kinds(stack) == "fccfccfccfcc"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "svdd"}, "unknown cache 'svdd'"),
        ({"interval": 0}, "at least 1"),
        ({"energy": 0.0}, "energy must be in"),
        ({"smoothing": 1.0}, "smoothing must be in"),
        ({"gains": (1.0,)}, "cache.gains: expected a list of 2"),
        ({"full_steps": (1, 2), "steps": 50}, "must hold 0"),
    ],
)
def test_bad_options_are_refused_while_building(options: dict[str, Any], words: str) -> None:
    with pytest.raises(StackError, match=words):
        Stack(tiny_denoiser()).cache(**options)
