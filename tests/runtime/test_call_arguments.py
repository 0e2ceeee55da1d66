"""Arguments of a pipeline call by name, by place, and those that no pipeline takes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline, FluxPipeline

from stack import Stack, StackError
from stack.reference.dit_pipeline import ShapesDiTPipeline
from stack.reference.pipeline import ShapesFluxPipeline
from stack.runtime.call_arguments import CallParameters, named_arguments

from ..conftest import PROMPT, picture, tiny_pipe

PIPES = (DiTPipeline, FluxPipeline, ShapesDiTPipeline, ShapesFluxPipeline)


def bare(kind: type) -> Any:
    return object.__new__(kind)


def test_any_split_into_places_and_names_gives_the_same_call() -> None:
    rng = random.Random(0)
    for _ in range(200):
        pipe = bare(rng.choice(PIPES))
        takes = CallParameters.of(pipe)
        given = {name: number + 1 for number, name in enumerate(takes.positional)}
        by_place = rng.randint(0, len(given))
        args = tuple(list(given.values())[:by_place])
        rest = list(given.items())[by_place:]
        rng.shuffle(rest)
        assert named_arguments(pipe, args, dict(rest)) == given


def test_an_argument_given_twice_is_named_at_every_place() -> None:
    for kind in PIPES:
        takes = CallParameters.of(bare(kind))
        for number, name in enumerate(takes.positional):
            with pytest.raises(StackError, match=f"{kind.__name__} was given {name} twice, by place and by name"):
                named_arguments(bare(kind), (1,) * (number + 1), {name: 1})


def test_too_many_by_place_and_unknown_names() -> None:
    pipe = bare(ShapesDiTPipeline)
    with pytest.raises(StackError, match=r"takes at most 6 arguments by place \(class_labels, .*return_dict\), got 7"):
        named_arguments(pipe, (1,) * 7, {})
    with pytest.raises(StackError, match="unknown argument of ShapesDiTPipeline 'guidence_scale': did you mean 'guida"):
        named_arguments(pipe, (), {"guidence_scale": 2.0})
    with pytest.raises(StackError, match="unknown argument of ShapesFluxPipeline 'num_inference_step': did you mean"):
        named_arguments(bare(ShapesFluxPipeline), (), {"num_inference_step": 4})


@pytest.mark.parametrize("steps", [True, False, 2.5, "8", 0, -1, float("nan"), [8]])
def test_what_is_no_number_of_steps_is_refused_before_anything_is_put_on(steps: Any) -> None:
    stack = Stack(tiny_pipe()).cache("svd")
    with pytest.raises(StackError, match="num_inference_steps must be a whole number of at least 1, got"):
        stack(PROMPT, num_inference_steps=steps)
    assert not stack.applied


def test_numbers_of_other_libraries_and_none_are_steps() -> None:
    stack = Stack(tiny_pipe(), steps=3)
    for given in (np.int64(3), None):
        assert torch.equal(
            stack(
                PROMPT, num_inference_steps=given, generator=torch.Generator().manual_seed(1), output_type="pt"
            ).images,
            picture(tiny_pipe(), 3),
        )


def test_steps_given_by_place_are_run() -> None:
    takes = CallParameters.of(bare(ShapesFluxPipeline)).positional
    args = [None] * (takes.index("num_inference_steps") + 1)
    args[0], args[takes.index("true_cfg_scale")], args[-1] = PROMPT, 1.0, 9
    args[takes.index("height")] = args[takes.index("width")] = 16
    stack = Stack(tiny_pipe(), steps=14).cache("fora")
    generator = torch.Generator().manual_seed(1)
    by_place = stack(*args, generator=generator, output_type="pt").images
    assert len(stack.report().steps) == 9
    assert torch.equal(by_place, picture(stack, 9))
