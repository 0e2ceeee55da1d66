from __future__ import annotations

import pytest
import torch

from stack import Stack, StackError
from stack.measure.metrics import psnr

from ..conftest import PROMPT, picture, tiny_pipe

STEPS = 14
OTHERS = ["a green circle", "a cyan star on a white background"]


def test_psnr_of_known_pictures() -> None:
    zero = torch.zeros(2, 3, 4, 4)
    assert psnr(zero + 0.1, zero) == pytest.approx(20.0, abs=1e-4)
    assert psnr(zero, zero) == 99.0


def test_calibration_beats_the_uniform_start_and_stays_in_the_stack() -> None:
    pipe = tiny_pipe()
    before = picture(pipe, STEPS)
    stack = Stack(pipe, steps=STEPS).cache("svd", interval=4, warmup=2)
    found = stack.calibrate([PROMPT, OTHERS[0]], OTHERS[1:], full_steps=4, trials=20, progress=False)
    assert found.trials <= 20 and len(found.full_steps) == 4 and found.full_steps[0] == 0
    assert found.psnr_db >= found.uniform_psnr_db
    picture(stack, STEPS)
    assert [r.step for r in stack.report().steps if r.kind == "full"] == list(found.full_steps)
    # The figure it reports is the figure one measures.
    exact = Stack(pipe, steps=STEPS)
    kept = picture(stack, STEPS, prompt=[PROMPT, OTHERS[0]], seed=0)
    stack.undo()
    uncached = picture(exact, STEPS, prompt=[PROMPT, OTHERS[0]], seed=0)
    exact.undo()
    assert psnr(kept, uncached) == pytest.approx(found.psnr_db, abs=0.01)
    assert torch.equal(picture(pipe, STEPS), before)


@pytest.mark.parametrize(
    ("prompts", "held_out", "full", "words"),
    [
        ([PROMPT], OTHERS, 4, "at least 2 prompts"),
        ([PROMPT, OTHERS[0]], [], 4, "1 held out"),
        ([PROMPT, OTHERS[0]], [PROMPT], 4, "must not be among"),
        ([PROMPT, OTHERS[0]], OTHERS[1:], 1, r"2\.\.13"),
        ([PROMPT, OTHERS[0]], OTHERS[1:], 14, r"2\.\.13"),
    ],
)
def test_what_it_cannot_calibrate_on(prompts: list[str], held_out: list[str], full: int, words: str) -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("svd")
    with pytest.raises(StackError, match=words):
        stack.calibrate(prompts, held_out, full_steps=full, progress=False)


@pytest.mark.parametrize("method", ["first-block", "duca"])
def test_what_follows_no_schedule_is_not_calibrated(method: str) -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache(method)
    with pytest.raises(StackError, match="no schedule to search"):
        stack.calibrate([PROMPT, OTHERS[0]], OTHERS[1:], full_steps=4)


def test_without_a_cache_or_a_pipeline() -> None:
    pipe = tiny_pipe()
    with pytest.raises(StackError, match="expected a stack with a cache"):
        Stack(pipe, steps=STEPS).calibrate([PROMPT, OTHERS[0]], OTHERS[1:], full_steps=4)
    with pytest.raises(StackError, match="got a bare denoiser"):
        Stack(pipe.transformer, steps=STEPS).cache("svd").calibrate([PROMPT, OTHERS[0]], OTHERS[1:], full_steps=4)
