"""Offloading, casting, compiling, device maps, attention back ends, tiles: before a stack, after it, and without it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from stack import Stack, StackError
from stack.planner import Planner

from ..pipelines.build import Tiny, flux, one_thread
from .features import FEATURES, NEUTRAL, STACKS

# What is refused, by the feature and the stack's first pass: before the stack, and after it.
HOOKED = "the model carries offloading hooks .*rule offloaded-modules"
MOVED = r"enable_group_offload\(\) on a model that carries quantize: .*undo\(\) the stack first"
COMPILED = "the model carries blocks compiled in place .*rule compiled-before"
REFUSED: dict[tuple[str, str], tuple[str, str]] = {
    ("sequential offload", "quantize"): (HOOKED, HOOKED),
    ("device_map", "quantize"): (HOOKED, HOOKED),
    ("group offload, leaves", "quantize"): (HOOKED, MOVED),
    ("group offload, blocks", "quantize"): (HOOKED, MOVED),
    ("group offload of the pipeline", "quantize"): (HOOKED, MOVED),
    ("layerwise casting", "quantize"): (
        "already quantized to 8 bits .*rule rounded-twice",
        r"enable_layerwise_casting\(\) on a model that carries quantize: .*undo\(\) the stack first",
    ),
    **{(name, stage): (COMPILED, COMPILED) for name in ("compiled", "blocks compiled") for stage in ("cache",)},
}


@pytest.fixture(autouse=True)
def _default_backend() -> Iterator[None]:
    """diffusers' `set_attention_backend` of one model is the default of all models in the process from then on."""
    before, _ = _AttentionBackendRegistry.get_active_backend()
    yield
    _AttentionBackendRegistry.set_active_backend(before)


def new() -> Tiny:
    return flux(torch.float32)


@cache
def without(stack: str, feature: str = "") -> torch.Tensor:
    """What a stack makes of the pipeline without the feature; with "" the pipeline itself."""
    tiny = new()
    backend, _ = _AttentionBackendRegistry.get_active_backend()
    if feature:
        FEATURES[feature](tiny.pipe)
    else:
        _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
    try:
        return tiny.call(STACKS[stack](tiny.pipe) if stack else None)
    finally:
        _AttentionBackendRegistry.set_active_backend(backend)


def refusal(name: str, feature: str) -> tuple[str, str] | None:
    stages = {"svd": ("cache",), "first-block": ("cache",), "quantize": ("quantize",)}
    return next((REFUSED[feature, stage] for stage in stages[name] if (feature, stage) in REFUSED), None)


def run(tiny: Tiny, stack: Stack, feature: str, later: bool) -> torch.Tensor:
    if not later:
        FEATURES[feature](tiny.pipe)
    stack.apply()
    if later:
        FEATURES[feature](tiny.pipe)
    return tiny.call(stack)


@pytest.mark.parametrize("later", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("name", ["svd", "first-block", "quantize"])
def test_beside_a_stack(name: str, feature: str, later: bool) -> None:
    tiny = new()
    stack = STACKS[name](tiny.pipe)
    refused = refusal(name, feature)
    with one_thread():
        if refused:
            with pytest.raises(StackError, match=refused[later]):
                run(tiny, stack, feature, later)
            stack.undo()
            if later and refused[later] is HOOKED:
                return  # the hooks stay on the model, whose weights they have moved
            plain = feature if not later or refused[later] is COMPILED else ""
            assert torch.equal(tiny.call(), without("", plain))
            return
        made = run(tiny, stack, feature, later)
        kinds = [entry.kind for entry in stack._target.journal.entries]
        assert ("full" in kinds) and (len(set(kinds)) > 1) is (name != "quantize")
        if feature in NEUTRAL:
            assert torch.equal(made, without(name))
        else:
            assert torch.equal(made, without(name, feature)) and not torch.equal(made, without(name))
        assert torch.equal(tiny.call(stack.undo().pipe), without("", feature))


def test_no_plan_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model compiled after its stack: the compiler's guards on what planning reads fail now and then."""
    tiny, traced = new(), []
    stack = STACKS["quantize"](tiny.pipe).apply()
    own = Planner.prepare

    def watched(*args: Any) -> list[str]:
        traced.append(torch.compiler.is_compiling())
        return own(*args)

    monkeypatch.setattr(Planner, "prepare", watched)
    FEATURES["compiled"](tiny.pipe)
    with one_thread():
        tiny.call(stack)
    assert traced == [False]


@pytest.mark.parametrize("name", ["svd", "first-block", "quantize"])
@pytest.mark.parametrize("feature", ["enable_tiling", "enable_slicing"])
def test_the_vae_decodes_in_parts_what_the_stack_made(name: str, feature: str) -> None:
    tiny = new()
    with one_thread(), STACKS[name](tiny.pipe) as stack:
        latents = tiny.call(stack, num_images_per_prompt=2)
        getattr(tiny.pipe.vae, feature)()
        assert torch.equal(tiny.call(stack, num_images_per_prompt=2), latents)
        decoded: Any = tiny.call(stack, num_images_per_prompt=2, output_type="pt")
        unpacked = tiny.pipe._unpack_latents(latents, tiny.given["height"], tiny.given["width"], 2)
        config = tiny.pipe.vae.config
        own = tiny.pipe.vae.decode(unpacked / config.scaling_factor + config.shift_factor, return_dict=False)[0]
        assert torch.equal(decoded, tiny.pipe.image_processor.postprocess(own.detach(), output_type="pt"))


def test_cast_weights_are_no_changed_weights_but_changed_ones_are_seen() -> None:
    """Casting hooks exchange the tensors of every layer in every call; a user's own change in mid-request shows."""
    tiny = new()
    FEATURES["layerwise casting"](tiny.pipe)
    stack = STACKS["svd"](tiny.pipe)

    def double(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        if step == 3:
            block = pipe.transformer.transformer_blocks[0]
            block.attn.to_q.weight = torch.nn.Parameter(block.attn.to_q.weight.clone()[:, :-1], requires_grad=False)
            block.attn.to_q.weight = torch.nn.Parameter(torch.zeros(64, 64), requires_grad=False)
        return {}

    with one_thread():
        tiny.call(stack)
        assert not stack.report().warnings
        tiny.call(stack, callback_on_step_end=double)
    assert any("other weights" in each for each in stack.report().warnings)
