"""Off is off: any subset of passes, applied and undone in any order, also after an exception inside a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack import Stack, StackError
from stack.core.passes import ORDER

from .conftest import inputs, picture, tiny_denoiser, tiny_pipe
from .lora import save_lora

STEPS = 14
TAKEN = 10  # steps of a solver
STAGES = [stage for stage in ORDER if stage != "compile"]  # minutes of compilation; see tests/passes/test_compile.py


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One pipeline for all examples, its untouched picture, and a LoRA that fits it."""
    pipe = tiny_pipe()
    folder = tmp_path_factory.mktemp("lora")
    save_lora(pipe.transformer, folder)
    return {"pipe": pipe, "before": picture(pipe, STEPS), "lora": folder, "keys": list(pipe.transformer.state_dict())}


def build(world: dict[str, Any], stages: list[str]) -> Stack:
    stack = Stack(world["pipe"], steps=STEPS)
    options: dict[str, Any] = {
        "distill": lambda: stack.distill(str(world["lora"])),
        "quantize": lambda: stack.quantize("int8", min_features=64),
        "adapter": lambda: stack.distill(str(world["lora"]), switchable=True),
        "solver": lambda: stack.solver(steps=TAKEN),
        "sage_attn": lambda: stack.sage_attn(),
        "sparse_attn": lambda: stack.sparse_attn(keep=0.5),
        "dense_attn": lambda: stack.dense_attn("products"),
        "cache": lambda: stack.cache("svd", interval=4, warmup=2),
    }
    for stage in stages:
        options[stage]()
    return stack


def untouched(world: dict[str, Any]) -> None:
    pipe = world["pipe"]
    assert torch.equal(picture(pipe, STEPS), world["before"])
    assert list(pipe.transformer.state_dict()) == world["keys"]
    assert not {"forward", "cache_context"} & vars(pipe.transformer).keys()


@settings(deadline=None, max_examples=12)
@given(data=st.data(), stages=st.lists(st.sampled_from(STAGES), unique=True, max_size=5))
def test_any_subset_undone_in_any_order(world: dict[str, Any], data: st.DataObject, stages: list[str]) -> None:
    stack = build(world, stages).apply()
    try:
        changes = any(p.stage != "sparse_attn" for p in stack.plan.passes())
        assert torch.equal(picture(stack, STEPS), world["before"]) is not changes
        for stage in data.draw(st.permutations(stages)):
            stack.undo(stage)
        assert torch.equal(picture(stack, STEPS), world["before"])
    finally:
        stack.undo()
    untouched(world)


class Broken(RuntimeError):
    pass


@settings(deadline=None, max_examples=10)
@given(
    stages=st.lists(st.sampled_from(STAGES), unique=True, min_size=1, max_size=5),
    step=st.integers(0, TAKEN - 1),
    inside=st.booleans(),
)
def test_an_exception_inside_a_step_leaves_nothing_behind(
    world: dict[str, Any], stages: list[str], step: int, inside: bool
) -> None:
    pipe = world["pipe"]
    stack = build(world, stages).apply()
    whole = picture(stack, STEPS)

    def fail(_: Any, number: int, *__: Any) -> dict[str, Any]:
        if number == step:
            raise Broken
        return {}

    with pytest.raises(Broken):
        if inside:
            calls = iter(range(STEPS + 1))

            def hook(*_: Any) -> None:
                fail(None, next(calls))

            handle = pipe.transformer.norm_out.register_forward_hook(hook)
            try:
                picture(stack, STEPS)
            finally:
                handle.remove()
        else:
            stack("a green circle", num_inference_steps=STEPS, callback_on_step_end=fail)
    assert torch.equal(picture(stack, STEPS), whole), "the aborted request leaked into the next"
    stack.undo()
    untouched(world)


def test_a_pass_that_fails_while_it_is_applied_rolls_everything_back(world: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"transformer.nowhere.lora_A.weight": torch.zeros(1, 1)}, tmp_path / "bad.safetensors")
    stack = Stack(world["pipe"], steps=STEPS).cache("svd").quantize("int8", min_features=64)
    stack.distill(str(tmp_path / "bad.safetensors"))
    with pytest.raises(StackError, match="does not fit this model"):
        stack.apply()
    assert not stack.applied
    untouched(world)


def test_leaving_the_context_manager_undoes(world: dict[str, Any]) -> None:
    with build(world, ["cache", "quantize"]) as stack:
        assert stack.applied
        assert not torch.equal(picture(stack, STEPS), world["before"])
    untouched(world)


def test_an_inner_block_leaves_the_stack_to_the_outer_one(world: dict[str, Any]) -> None:
    with build(world, ["cache", "quantize"]) as stack:
        with stack as same:
            assert same is stack
        assert stack.applied
        with pytest.raises(KeyError), stack:
            raise KeyError
        assert stack.applied and not torch.equal(picture(stack, STEPS), world["before"])
    untouched(world)


def test_a_second_stack_on_the_same_model_is_refused(world: dict[str, Any]) -> None:
    with build(world, ["cache"]), pytest.raises(StackError, match="already carries a stack"):
        build(world, ["quantize"]).apply()
    build(world, ["quantize"]).apply().undo()
    untouched(world)


def test_a_bare_denoiser_is_restored_bit_for_bit() -> None:
    denoiser = tiny_denoiser()
    with torch.no_grad():
        before = denoiser(**inputs()).sample
        stack = Stack(denoiser).quantize("int8", min_features=64).sparse_attn().cache("svd")
        during = stack(**inputs()).sample
        stack.undo()
        assert not torch.equal(during, before)
        assert torch.equal(denoiser(**inputs()).sample, before)
