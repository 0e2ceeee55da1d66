"""Higher precision near the ends of the schedule."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stack import Stack, StackError
from stack.quant.linears.two_precisions import Phase, TwoPrecisions, near_ends
from stack.quant.quantize import Quantize
from stack.runtime.step import StepContext
from tests.conftest import inputs, picture, tiny_denoiser, tiny_pipe

TICK = StepContext(request=1, branch="main", step=0, steps=50, sigma=1.0, time=1.0, shape=(), at=0, whole=50)


@given(steps=st.integers(1, 200), share=st.floats(0.001, 0.499))
def test_both_ends_have_as_many_steps_and_one_at_least(steps: int, share: float) -> None:
    near = [near_ends(replace(TICK, at=step, whole=steps), share) for step in range(steps)]
    assert near == near[::-1] and near[0] and near[-1]
    assert sum(near) == min(steps, 2 * max(1, round(share * steps)))


def test_ten_per_cent_of_fifty_steps() -> None:
    near = [step for step in range(50) if near_ends(replace(TICK, at=step), 0.1)]
    assert near == [0, 1, 2, 3, 4, 45, 46, 47, 48, 49]


@pytest.mark.parametrize("ends", ["keep", "int8-weight"])
def test_each_step_runs_in_its_precision(ends: str) -> None:
    """Whole steps agree with a model that has one precision throughout, the ends with the other."""
    steps = {}
    for name, options in {
        "both": {"scheme": "nf4", "ends": ends},
        "ends": {"scheme": ends},
        "middle": {"scheme": "nf4"},
    }.items():
        denoiser = tiny_denoiser()
        stack = Stack(denoiser, steps=10)
        if options["scheme"] != "keep":
            stack.quantize(**options)
        with torch.no_grad():
            steps[name] = [stack(**inputs(sigma=1 - i / 10), return_dict=False)[0] for i in range(10)]
    for i in range(10):
        same, other = ("ends", "middle") if i in (0, 9) else ("middle", "ends")
        assert torch.equal(steps["both"][i], steps[same][i]) and not torch.equal(steps["both"][i], steps[other][i])


def test_it_comes_off_again_and_says_what_it_keeps() -> None:
    pipe = tiny_pipe()
    before = picture(pipe)
    stack = Stack(pipe, steps=14).quantize("int8", ends="keep", share=0.2)
    assert "the first and the last 3 of 14 steps run in the model's own precision: both weights stay" in stack.explain()
    plain = Stack(tiny_denoiser()).quantize("int8").apply().report().passes["quantize"]["weight_bytes"]
    stack.apply()
    held = stack.report().passes["quantize"]["weight_bytes"]
    originals = 24 * 128 * 128 * 4  # see tests/passes/test_quantize.py
    assert held == plain + originals
    stack.undo()
    assert torch.equal(picture(pipe), before)


def test_compiled_code_is_made_twice_at_most() -> None:
    seen = []

    def backend(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> object:
        seen.append(graph)
        return graph

    compute_mode = Phase()
    block = nn.Sequential(TwoPrecisions(nn.Linear(8, 8), nn.Linear(8, 8), compute_mode))
    torch._dynamo.reset()
    compiled = torch.compile(block, backend=backend)
    x = torch.randn(3, 8)
    with torch.no_grad():
        for step in range(12):
            compute_mode.at_ends = step in (0, 1, 10, 11)
            assert torch.allclose(compiled(x), block(x))
    assert len(seen) == 2


def test_bad_shares_and_names() -> None:
    for share in (0.0, 0.5, -1.0):
        with pytest.raises(StackError, match="share must be between 0 and"):
            Quantize(ends="keep", share=share)
    with pytest.raises(StackError, match="scheme 'bf8'"):
        Quantize(ends="bf8")
