"""Two denoisers under one stack: both get the passes, neither the other's state, and all of it comes off."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stack import Stack, StackError
from stack.caching.cache import Cache

from .build import STEPS, Whole, denoiser, wan
from .special import ideogram4

wan22 = partial(wan, 2)
PAIRS: dict[str, Callable[[], Whole]] = {"wan22": wan22, "ideogram4": ideogram4}


def weights(whole: Whole) -> dict[str, torch.Tensor]:
    parts = {name: getattr(whole.pipe, name) for name in whole.denoisers}
    return {f"{part}.{k}": v.clone() for part, model in parts.items() for k, v in model.state_dict().items()}


def classes(model: nn.Module) -> set[str]:
    return {type(module).__name__ for module in model.modules()}


def reused(**options: Any) -> Callable[[Any], Stack]:
    return lambda pipe: Stack(pipe, steps=STEPS).quantize("int8", min_features=8).cache("svd", interval=3, **options)


def test_both_are_compiled_and_give_what_they_give_eagerly() -> None:
    whole = wan22()
    plain = whole.call()

    def made(stack: Stack) -> tuple[torch.Tensor, list[str]]:
        with stack:
            return whole.call(stack), [record.kind for record in stack.report().steps]

    small = partial(Stack.quantize, scheme="int8", min_features=8)
    eager, kinds = made(small(Stack(whole.pipe, steps=STEPS)).cache("svd"))
    compiled, same_kinds = made(small(Stack(whole.pipe, steps=STEPS)).compile().cache("svd"))
    assert kinds == same_kinds and kinds.count("cached") == 6
    assert float((compiled - eager).abs().max()) < 1e-4 < 0.1 < float((eager - plain).abs().max())
    assert torch.equal(whole.call(), plain)


@pytest.mark.parametrize("name", PAIRS)
def test_both_get_the_passes_and_both_lose_them(name: str) -> None:
    whole = PAIRS[name]()
    plain, before = whole.call(), weights(whole)
    models = [getattr(whole.pipe, part) for part in whole.denoisers]
    kinds = [classes(model) for model in models]
    stack = reused()(whole.pipe).apply()
    assert all(classes(model) > own for model, own in zip(models, kinds, strict=True))  # linears of int8
    assert all(Stack.of(model) is stack for model in models)
    during = whole.call(stack)
    assert not torch.equal(during, plain)
    stages = stack.report().passes
    second = whole.denoisers[1]
    assert list(stages) == ["quantize", "cache", f"quantize on {second}", f"cache on {second}"]
    assert stages["quantize"]["converted"] == stages[f"quantize on {second}"]["converted"] > 0
    stack.undo("quantize")
    assert all(classes(model) == own for model, own in zip(models, kinds, strict=True))
    assert stack.applied
    stack.undo()
    assert torch.equal(whole.call(), plain)
    after = weights(whole)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_the_plan_names_the_second_and_what_goes_on_it() -> None:
    text = Stack(wan22().pipe, steps=STEPS).quantize("int8", min_features=8).cache("svd").explain()
    assert "also on transformer_2, with a cache state of its own: the same: quantize, cache" in text
    assert "also on" not in Stack(wan().pipe, steps=STEPS).cache("svd").explain()


def test_the_first_step_after_the_switch_is_full_and_what_the_first_one_kept_is_let_go() -> None:
    whole = wan22()
    with Stack(whole.pipe, steps=STEPS).cache("reuse", count=2) as stack:
        held: list[int] = []

        def note(pipe: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
            held.append(sum(layer.applied.details["controller"].bytes for layer in stack._layers))
            return given

        whole.call(stack, callback_on_step_end=note)
        report = stack.report()
    switch = next(record.step for record in report.steps if record.branch.startswith("transformer_2"))
    assert 1 < switch < STEPS - 1
    assert all(kept > 0 for kept in held[:switch]) and held[switch:] == [0] * (STEPS - switch)
    kinds = {(record.branch, record.step): record.kind for record in report.steps}
    assert kinds["transformer_2: cond", switch] == kinds["transformer_2: uncond", switch] == "full"
    assert kinds["cond", switch - 1] == "cached"
    assert report.warnings == []
    assert len(report.steps) == 2 * STEPS and report.branches == 4


@pytest.mark.parametrize("name", PAIRS)
def test_two_calls_and_one_after_an_abort_are_alike(name: str) -> None:
    whole = PAIRS[name]()
    with Stack(whole.pipe, steps=STEPS).cache("svd", interval=3) as stack:
        first = whole.call(stack)
        assert torch.equal(whole.call(stack), first)
        assert torch.equal(whole.call(), first)  # the pipeline itself

        def stop(pipe: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
            if step == 5:
                raise KeyboardInterrupt
            return given

        with pytest.raises(KeyboardInterrupt):
            whole.call(stack, callback_on_step_end=stop)
        assert stack.report().cache_bytes == 0 or name == "ideogram4"
        assert torch.equal(whole.call(stack), first)


def test_another_number_of_steps_is_planned_for_on_both() -> None:
    whole = wan22()
    plain = whole.call(num_inference_steps=6)
    with Stack(whole.pipe, steps=STEPS).cache("svd", interval=1) as stack:
        whole.call(stack)
        assert torch.equal(whole.call(stack, num_inference_steps=6), plain)
        assert len(stack.report().steps) == 12


def test_what_fails_on_the_second_leaves_neither_changed() -> None:
    whole = wan22()
    plain, second = whole.call(), whole.pipe.transformer_2
    stack = reused()(whole.pipe)
    Stack(second).cache("svd").apply()
    with pytest.raises(StackError, match="this model already carries a stack"):
        stack.apply()
    assert not stack.applied
    Stack.of(second).undo()
    assert torch.equal(whole.call(), plain)
    stack.apply().undo()
    assert torch.equal(whole.call(), plain)


def test_a_second_that_is_exchanged_for_another_is_noticed() -> None:
    whole = wan22()
    stack = Stack(whole.pipe, steps=STEPS).cache("svd").apply()
    old, whole.pipe.transformer_2 = whole.pipe.transformer_2, denoiser("WanTransformer3DModel", seed=2)
    with pytest.raises(StackError, match=r"pipe\.transformer_2 is no longer the model that carries this stack"):
        whole.call(stack)
    stack.undo()
    fresh = whole.call()
    assert torch.equal(whole.call(Stack(whole.pipe, steps=STEPS).cache("svd", interval=1)), fresh)
    assert old is not whole.pipe.transformer_2


def test_a_model_that_changes_between_calls_is_planned_for_anew() -> None:
    whole = wan22()
    stack = Stack(whole.pipe, steps=STEPS).quantize("int8", min_features=8).apply()
    first = whole.call(stack)
    whole.pipe.transformer_2.to(torch.float64).to(torch.float32)
    whole.pipe.transformer.set_attn_processor(type(whole.pipe.transformer.blocks[0].attn1.processor)())
    assert torch.equal(whole.call(stack), first)
    stack.undo()


REFUSED: dict[str, tuple[Callable[[Stack, Path], Any], str]] = {
    "noise_floor": (
        lambda stack, folder: stack.noise_floor(["a"], progress=False),
        "recording calls is for a single denoiser, this WanPipeline has transformer_2 as well",
    ),
    "fit_bases": (
        lambda stack, folder: stack.replace(Cache("svd-published")).fit_bases(["a"], progress=False),
        r"fit_bases\(\) is for a single denoiser, this WanPipeline has transformer_2 as well",
    ),
    "max_error": (
        lambda stack, folder: Stack(stack.pipe, steps=STEPS, max_error=0.05).cache("svd").apply(),
        "transformer_2: |max_error on a pipeline with two denoisers",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_two_denoisers_do_not_have_is_refused_by_name(name: str, tmp_path: Path) -> None:
    whole, (do, message) = wan22(), REFUSED[name]
    plain = whole.call()
    stack = reused()(whole.pipe)
    with pytest.raises(StackError, match=message):
        do(stack, tmp_path)
    stack.undo()
    assert torch.equal(whole.call(), plain) and not list(tmp_path.iterdir())


def test_freezing_keeps_the_outputs_and_drops_the_weights_of_both() -> None:
    whole = wan22()
    stack = reused()(whole.pipe)
    made = whole.call(stack)
    stack.freeze()
    assert torch.equal(whole.call(stack), made)
    with pytest.raises(StackError, match=r"freeze\(\) dropped the original weights"):
        stack.undo()
    assert torch.equal(whole.call(stack), made)


def test_a_negative_prompt_changes_nothing_in_the_branch_beside_it() -> None:
    """Ideogram's second denoiser sees no text: its outputs follow the latents alone."""
    whole = ideogram4()
    with Stack(whole.pipe, steps=STEPS).cache("svd", interval=3) as stack:
        one = whole.call(stack, guidance_scale=0.0)  # all of the second denoiser, none of the first
        other = whole.call(stack, guidance_scale=0.0, prompt="two")
    assert torch.equal(one, other)
