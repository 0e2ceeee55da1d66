"""Observers see every call of the denoiser and of its blocks, change nothing, and come off."""

from __future__ import annotations

from typing import Any

import torch

from stack import Stack
from stack.calibration.observe import Observe, answer_calls, watching_blocks
from stack.calibration.trajectory import Trajectory, recorder
from tests.conftest import picture, tiny_pipe

STEPS = 4
BLOCKS = 2


def test_blocks_are_seen_in_order_and_pictures_stay() -> None:
    pipe, seen = tiny_pipe(), []
    expected = picture(pipe, STEPS)
    stack = (
        Stack(pipe, steps=STEPS)
        .cache("svd")
        .replace(watching_blocks(lambda n, x, y, context: seen.append((context.step, n))))
    )
    assert torch.equal(picture(stack, STEPS), expected)
    assert seen == [(step, number) for step in range(STEPS) for number in range(BLOCKS)]
    stack.undo()
    assert torch.equal(picture(pipe, STEPS), expected) and len(seen) == STEPS * BLOCKS


def test_calls_can_be_answered() -> None:
    pipe, steps = tiny_pipe(), []

    def visit(call: Any, run: Any, context: Any) -> Any:
        steps.append(context.step)
        return run(call) if context.step else (torch.zeros_like(call.latent),)

    observer = Observe(lambda target, install: answer_calls(target, install, visit))
    stack = Stack(pipe, steps=STEPS).cache("svd").replace(observer)
    expected = picture(pipe, STEPS)
    assert not torch.equal(picture(stack, STEPS), expected) and steps == list(range(STEPS))
    stack.undo()
    assert torch.equal(picture(pipe, STEPS), expected)


def test_a_reused_step_has_the_last_feature_and_runs_no_block() -> None:
    pipe, plain, disturbed = tiny_pipe(), Trajectory(), Trajectory()
    for trajectory, reused in ((plain, ()), (disturbed, (1,))):
        stack = Stack(pipe, steps=STEPS).cache("svd").replace(recorder(trajectory, reused))
        picture(stack, STEPS)
        stack.undo()
    assert [t.step for t in plain.contexts] == [t.step for t in disturbed.contexts] == [0, 1, 2, 3]
    assert (len(plain.features), len(disturbed.features)) == (4, 3)
    assert torch.equal(plain.features[0], disturbed.features[0])
    assert torch.equal(plain.inputs[1], disturbed.inputs[1]) and not torch.equal(plain.inputs[2], disturbed.inputs[2])
