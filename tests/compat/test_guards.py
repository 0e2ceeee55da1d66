"""What must not be forecast from is not: features without a number, features of other weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stack import Stack
from stack.compat.rules.state import NOT_A_NUMBER

from ..conftest import inputs, tiny_denoiser

STEPS = 14
METHODS = ("svd", "taylorseer", "predictor-corrector", "fora")


def walk(stack: Stack, steps: range) -> list[torch.Tensor]:
    with torch.no_grad():
        return [stack(**inputs(1 - step / STEPS))[0] for step in steps]


class Spoiled(nn.Module):
    """Gives NaN once."""

    def __init__(self, inner: nn.Module, at: int):
        super().__init__()
        self.inner, self.left = inner, at

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        out = self.inner(x)
        return out * float("nan") if self.left == 0 else out


@pytest.mark.parametrize("method", ["svd", "taylorseer", "fora"])
def test_a_step_that_fails_spoils_no_other(method: str) -> None:
    """NaN on full step 2: the next one runs in full although the schedule has it cached, and is sound again."""
    denoiser = tiny_denoiser()
    block = denoiser.transformer_blocks[0]
    block.ff.net[2] = Spoiled(block.ff.net[2], at=3)
    stack = Stack(denoiser, steps=STEPS).cache(method, warmup=3, interval=3)
    outs = walk(stack, range(6))
    assert [bool(out.isfinite().all()) for out in outs] == [True, True, False, True, True, True]
    assert [record.kind for record in stack.report().steps] == ["full"] * 4 + ["cached", "full"]
    text = "NaN or infinity in a feature before step 3: dropped, the step runs in full"
    assert stack.report().warnings == [NOT_A_NUMBER.told(text)]


def test_state_that_overflows_its_dtype_is_not_used() -> None:
    """Features beyond 65,504 kept in float16."""
    denoiser = tiny_denoiser()
    with torch.no_grad():
        denoiser.x_embedder.weight.mul_(1e7)
    stack = Stack(denoiser, steps=STEPS).cache("svd", warmup=1, interval=3, state_dtype="float16")
    outs = walk(stack, range(4))
    assert all(bool(out.isfinite().all()) for out in outs)
    assert stack.report().full_steps == 4
    assert "NaN or infinity" in stack.report().warnings[0]


@pytest.mark.parametrize("method", METHODS[:2])
def test_weights_that_change_under_a_request_drop_its_state(method: str) -> None:
    denoiser = tiny_denoiser()
    stack = Stack(denoiser, steps=STEPS).cache(method, warmup=2, interval=6)
    walk(stack, range(4))
    with torch.no_grad():
        denoiser.proj_out.weight.mul_(1.5)
    (got,) = walk(stack, range(4, 5))
    assert [record.kind for record in stack.report().steps] == ["full", "full", "cached", "cached", "full"]
    assert stack.report().passes["cache"]["dropped"] == 1
    stack.undo()
    with torch.no_grad():
        assert torch.equal(got, denoiser(**inputs(1 - 4 / STEPS))[0])
