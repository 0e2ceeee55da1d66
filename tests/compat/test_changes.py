"""Whatever changes in the middle of a request: from there on nothing old is used, and the report says what changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stack import Stack
from stack.caching.cache import Cache

from .changing import EVERY, SCENES, STEPS, Scene

EAGER = {"interval": 6, "warmup": 2}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "svd": ("svd-published", EAGER),
    "fora": ("fora-published", EAGER),
    "first-block": ("first-block", {"threshold": 9.0, "warmup": 2}),
    "predictor-corrector": ("predictor-corrector", EAGER),
    "svd corrected": ("svd", EAGER),
    "duca": ("duca-published", EAGER | {"budget": "even"}),
    "int8": ("svd-published", EAGER),
}


def walk(scene_name: str, change_name: str, method: str, at: int, inference: bool) -> None:
    """Full steps from the change on are the plain model's, as far as no cached step is behind them to be put right; the
    first is one, and the report has its reason.
    """
    make, call, changes = SCENES[scene_name]
    said, change = changes[change_name]
    preset, options = METHODS[method]
    corrected = Cache(preset, **options).policy.corrected
    with torch.inference_mode(inference), torch.no_grad():
        scene = Scene(make(), call())
        if method == "int8" and "flux" in scene_name:
            scene.denoiser.unload_lora()  # linears under an unmerged LoRA are not rounded
        stack = Stack(scene.denoiser, steps=STEPS)
        plain = copy.deepcopy(scene.denoiser)
        bare = Stack(plain, steps=STEPS)
        if method == "int8":
            stack, bare = (each.quantize("int8", min_features=32) for each in (stack, bare))
            bare.apply()
        stack.cache(preset, **options).apply()
        other = Scene(plain, scene.given)
        for step in range(at):
            scene.call(step)
            other.call(step)  # weights are rounded anew for the next request, here as there
        change(scene)
        if change_name in ON_MODEL:
            change(other)
        for step in range(at, STEPS):
            got, right = scene.call(step), other.call(step)
            record = stack.report().steps[-1]
            if step == at:
                assert record.kind == "full", stack.report()
            if record.kind == "full" and (step == at or not corrected):
                assert torch.equal(got, right), (step, (got - right).norm() / right.norm())
        warnings = "\n".join(stack.report().warnings)
        assert f"state dropped at step {at}: it was made under other" in warnings and said in warnings, warnings
        assert any(record.kind != "full" for record in stack.report().steps)
        stack.undo()


# Changes of the model itself: made on the plain copy too. The others are of the arguments that both are given.
ON_MODEL = ("scale of an image, in place", "scale of a LoRA on the model", "autocast", "dtype")


@pytest.mark.parametrize(("scene", "change"), EVERY)
def test_a_change_on_a_cached_step(scene: str, change: str) -> None:
    walk(scene, change, "svd", 4, inference=False)


@settings(deadline=None, max_examples=8)
@given(
    what=st.sampled_from(EVERY), method=st.sampled_from(sorted(METHODS)), at=st.integers(1, STEPS - 2),
    inference=st.booleans(),
)  # fmt: skip
def test_any_change_at_any_step_under_any_cache(what: tuple[str, str], method: str, at: int, inference: bool) -> None:
    assume(what[0] != "dit" or method != "predictor-corrector")  # refused: a bare DiT does not tell its sampler
    assume(method != "int8" or what[1] != "scale of a LoRA on the model")
    walk(*what, method, at, inference)
