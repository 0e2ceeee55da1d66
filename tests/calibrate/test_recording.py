"""Recorded calls give what the pipeline's own calls gave, with guidance branches in one batch too."""

from __future__ import annotations

import torch

from stack import Stack
from stack.calibration.quant.recording import record_calls
from tests.conftest import PROMPT, tiny_pipe
from tests.reference.test_dit_pipeline import tiny_dit

STEPS = 5


def test_replayed_calls_are_those_of_the_pipeline() -> None:
    pipe = tiny_pipe()
    seen = []
    handle = pipe.transformer.register_forward_hook(lambda module, args, out: seen.append(out[0]))
    pipe(PROMPT, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(4), output_type="latent")
    handle.remove()
    stack = Stack(pipe, steps=STEPS).quantize("int8")
    calls = record_calls(stack, [PROMPT], seed=4, steps=3)
    assert [call.context.step for call in calls] == [0, 2, 4]
    for call in calls:
        assert torch.equal(call.run(stack), seen[call.context.step])
    assert not stack.applied and "forward" not in vars(pipe.transformer)


def test_samples_of_a_guided_batch_can_be_taken_alone() -> None:
    """DiT runs both guidance branches in one call: each of two prompts has a row in either half."""
    pipe = tiny_dit()
    stack = Stack(pipe, steps=STEPS).quantize("int8", min_features=32)
    (first, last) = record_calls(stack, ["a red ring", "a blue star"], seed=0, steps=2)
    assert len(first.latent) == 4 and last.context.step == STEPS - 1
    whole = first.run(stack)
    rows = [1, 3]
    part = first.only(rows, ("hidden_states", "timestep", "class_labels")).run(stack)
    assert torch.allclose(part, whole[rows], atol=1e-5)
