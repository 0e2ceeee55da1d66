"""Position tables are made once per request, and never for one request out of another's."""

from __future__ import annotations

from typing import Any

import torch

from stack import Stack

from ..conftest import PROMPT, tiny_pipe

STEPS = 14


def counted(pipe: Any) -> list[int]:
    made: list[int] = []
    inner = pipe.transformer.pos_embed.forward
    pipe.transformer.pos_embed.forward = lambda ids: (made.append(len(ids)), inner(ids))[1]
    return made


def draw(run: Any, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return run(PROMPT, height=size, width=size, num_inference_steps=STEPS, generator=generator, output_type="pt").images


def test_once_per_request_and_anew_for_another_size() -> None:
    pipe = tiny_pipe()
    expected = {size: draw(pipe, size) for size in (16, 32)}
    made = counted(pipe)
    with Stack(pipe, steps=STEPS).cache("svd", interval=1) as stack:
        for size in (16, 16, 32, 16):
            assert torch.equal(draw(stack, size), expected[size])
        assert len(made) == 4 and made[2] > made[1] == made[0] == made[3]
    made.clear()
    assert torch.equal(draw(pipe, 16), expected[16]) and len(made) == STEPS


def test_between_calls_the_module_answers_for_itself() -> None:
    pipe = tiny_pipe()
    with Stack(pipe, steps=STEPS).cache("svd") as stack:
        draw(stack)
        ids = torch.arange(80 * 3).reshape(80, 3).float()
        inside = stack.denoiser.pos_embed(ids)
    assert torch.equal(torch.stack(inside), torch.stack(pipe.transformer.pos_embed(ids)))
