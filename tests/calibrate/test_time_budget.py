"""A calibration keeps to its seconds, on a clock that the denoiser's calls move; and it never makes a cache worse."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from stack import Stack, StackError
from stack.caching.cache import Cache
from stack.calibration.calibrate import calibrate
from stack.calibration.calibration import Calibration
from stack.calibration.goals import Goal
from stack.calibration.held_out import PICTURES, HeldOut
from stack.calibration.time_budget import CHECK, SearchBudget, fitting, least_seconds
from stack.calibration.trials import Trials
from stack.reference.pipeline import ShapesFluxPipeline

from ..conftest import PROMPT, picture, tiny_pipe

STEPS = 14
PROMPTS = [PROMPT, "a green circle", "a purple ring"]
HELD = ["a cyan star on a white background", "a blue square"]


@dataclass
class Clock:
    """A full step takes a second for every sample of a call, a step without its blocks a tenth."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def on(self, pipe: ShapesFluxPipeline) -> Clock:
        def moves(seconds: float) -> Any:
            def move(module: Any, args: Any, given: dict[str, torch.Tensor]) -> None:
                self.now += seconds * len(given["hidden_states"])

            return move

        pipe.transformer.register_forward_pre_hook(moves(0.1), with_kwargs=True)
        pipe.transformer.transformer_blocks[0].attn.register_forward_pre_hook(moves(0.9), with_kwargs=True)
        return self


def calibrated(stack: Stack, clock: Clock, seconds: float, trials: int = 12, goal: Goal | None = None) -> Calibration:
    budget = SearchBudget(trials, seconds, clock)
    return calibrate(stack, PROMPTS, HELD, goal or Goal(), 0, budget, progress=False)


def cache_of(stack: Stack) -> Cache:
    return next(p for p in stack.passes if isinstance(p, Cache))


@pytest.mark.parametrize("method", ["svd", "first-block"])
def test_seconds_are_kept_to_or_refused(method: str) -> None:
    rng = random.Random(0)
    finished = 0
    for _ in range(8):
        pipe = tiny_pipe()
        stack, clock = Stack(pipe, steps=STEPS).cache(method), Clock().on(pipe)
        before, seconds = cache_of(stack), 10 ** rng.uniform(0.5, 3.2)
        goal = Goal() if method == "svd" else Goal(full_steps=12)
        try:
            calibrated(stack, clock, seconds, goal=goal)
            finished += 1
        except StackError as error:
            assert "give it more seconds" in str(error) or "no threshold reached full_steps=12" in str(error)
            assert cache_of(stack) == before and not stack.applied
        one_call = len(PROMPTS)
        assert clock.now <= CHECK * seconds + one_call <= 1.2 * seconds + one_call, seconds
    assert method != "svd" or 2 <= finished < 8


def test_a_budget_that_is_too_small_is_refused_before_a_picture_is_finished() -> None:
    pipe = tiny_pipe()
    stack, clock = Stack(pipe, steps=STEPS).cache("svd"), Clock().on(pipe)
    with pytest.raises(
        StackError, match=r"one picture takes about 14 s, and the shortest calibration \d+ s \(2 prompts"
    ):
        calibrated(stack, clock, 30.0)
    assert clock.now <= 5
    with pytest.raises(StackError, match="more than 0 seconds, got 60 and budget=0"):
        SearchBudget(60, 0.0)


def test_prompts_there_is_no_time_for_are_left_out_and_told() -> None:
    pipe = tiny_pipe()
    stack, clock = Stack(pipe, steps=STEPS).cache("svd"), Clock().on(pipe)
    share = 4 / STEPS
    least = least_seconds(14.0, 2, 1, share)
    assert fitting(PROMPTS, HELD, 14.0, share, 1e9) == (PROMPTS, HELD)
    assert fitting(PROMPTS, HELD, 14.0, share, least) == (PROMPTS[:2], HELD[:1])
    found = calibrated(stack, clock, 1000.0)
    assert found.left_out == 0 and "left out" not in str(found)
    found = calibrated(stack, clock, 118.0)  # the shortest takes 134 s with all prompts, 110 s without one
    assert found.left_out == 1 and "no time for 1 prompt, left out" in str(found)


def test_what_was_there_stays_where_nothing_better_is_found() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("svd", interval=4, warmup=2)
    good = stack.calibrate(PROMPTS, HELD, full_steps=5, trials=20, progress=False)
    again = stack.calibrate(PROMPTS, HELD, trials=1, progress=False)
    assert not good.kept and again.kept and cache_of(stack) == good.cache == again.cache
    assert again.held_out_psnr_db == pytest.approx(good.held_out_psnr_db, abs=0.01)
    assert again.before_psnr_db == pytest.approx(good.psnr_db, abs=0.01)
    assert "nothing better was found, the cache stays as it was" in str(again)


@pytest.mark.parametrize("method", ["svd", "fora", "toca", "easycache-published"])
@pytest.mark.parametrize("trials", [4])
def test_no_calibration_makes_held_out_pictures_worse(method: str, trials: int) -> None:
    for seed in range(2):
        pipe = tiny_pipe()
        stack = Stack(pipe, steps=STEPS).cache(method)
        before = cache_of(stack)
        found = stack.calibrate(PROMPTS[:2], HELD[:1], trials=trials, seed=seed, progress=False)
        runs = Trials(stack, before, PROMPTS[:2], STEPS, seed)
        held = HeldOut(runs, HELD[:1], check=2 if found.compared else 1, times=PICTURES)
        assert held.psnr(found.cache) >= held.psnr(before) - 0.01
        assert found.kept == (found.cache == before)


@pytest.mark.parametrize("learn", ["off", None])
def test_ctrl_c_keeps_the_best_so_far_and_says_so(learn: str | None) -> None:
    kept = restored = 0
    for at in range(0, 240, 30):
        pipe = tiny_pipe()
        plain = picture(pipe, STEPS)
        stack, calls = Stack(pipe, steps=STEPS).cache("svd"), [at]
        before = cache_of(stack)

        def interrupt(*_: object, calls: list[int] = calls) -> None:
            calls[0] -= 1
            if calls[0] == 0:
                raise KeyboardInterrupt

        handle = pipe.transformer.register_forward_pre_hook(interrupt)
        try:
            with pytest.warns(UserWarning, match="interrupted, the best so far is kept: .*WARNING: interrupted"):
                found = stack.calibrate(PROMPTS[:2], HELD[:1], full_steps=4, trials=6, progress=False, learn=learn)
            # Corrections are learnt after the check, which is then still valid.
            assert found.interrupted and found.psnr_db >= found.before_psnr_db
            assert learn is None or not found.checked
            assert cache_of(stack) == found.cache
            kept += 1
        except KeyboardInterrupt:
            assert cache_of(stack) == before and not stack.applied
            restored += 1
        except pytest.fail.Exception:  # nothing was interrupted: it was over before, or `at` is 0
            assert calls[0] > 0 or at == 0
        handle.remove()
        stack.undo()
        assert torch.equal(picture(pipe, STEPS), plain)
    assert restored >= 1 and kept >= 2


@pytest.mark.parametrize("fit", ["fit_bases", "fit_gate", "fit_maps", "fit_rounding", "noise_floor"])
def test_ctrl_c_in_a_fit_leaves_the_stack_as_it_was(fit: str) -> None:
    methods = {"fit_gate": "teacache", "fit_maps": "fastcache-published"}
    for at in (1, 9, 20):
        pipe = tiny_pipe()
        plain, calls = picture(pipe, STEPS), [at]
        stack = Stack(pipe, steps=STEPS)
        if fit in ("fit_rounding", "noise_floor"):
            stack.quantize("nf4", feedback=fit == "fit_rounding")
        else:
            stack.cache(methods.get(fit, "svd-published"))
        before = stack.passes

        def interrupt(*_: object, calls: list[int] = calls) -> None:
            calls[0] -= 1
            if calls[0] == 0:
                raise KeyboardInterrupt

        handle = pipe.transformer.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            getattr(stack, fit)(PROMPTS[:2], progress=False)
        handle.remove()
        assert stack.passes == before and not stack.applied
        assert torch.equal(picture(pipe, STEPS), plain)
