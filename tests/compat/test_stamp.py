"""All that a cached tensor depends on is in its stamp: one thing changes, and the state is dropped and counted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from peft import LoraConfig
from torch import nn

from stack import Stack
from stack.models.schedule import SigmaSchedule, of_flow, uniform
from stack.runtime.stamp import Conditions, Stamp

from ..conftest import inputs, tiny_denoiser

STEPS = 14
AT = 4  # cached, if nothing has changed
METHODS: dict[str, dict[str, Any]] = {
    "svd": {"interval": 6, "warmup": 2},
    "taylorseer": {"interval": 6, "warmup": 2},
    "svd-published-blocks": {"interval": 6, "warmup": 2},
    "duca": {"interval": 6, "warmup": 2},
    "predictor-corrector": {"interval": 6, "warmup": 2},
    "easycache-published": {"threshold": 9.0, "warmup": 2},
    "rfc": {"threshold": 9.0, "warmup": 2},
    "first-block": {"threshold": 9.0, "warmup": 2},
    "speca-published": {"accept": (9.0, 1.0, 9.0), "warmup": 2},
    "fastcache-published-merge": {"warmup": 2},
}
Given = dict[str, torch.Tensor]


def at(step: int, **changed: torch.Tensor) -> Given:
    return {**inputs(1 - step / STEPS), **changed}


@torch.no_grad()
def walk(stack: Stack, given: Given, steps: range) -> list[torch.Tensor]:
    return [stack(**at(step, **given))[0] for step in steps]


class Louder(FluxAttnProcessor):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = super().__call__(*args, **kwargs)
        return tuple(1.5 * x for x in out) if isinstance(out, tuple) else 1.5 * out


def adapter(denoiser: Any) -> None:
    denoiser.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "style")


def new_parameter(denoiser: Any) -> None:
    denoiser.proj_out.weight = nn.Parameter(denoiser.proj_out.weight * 1.5)


def edited(denoiser: Any) -> None:
    with torch.no_grad():
        denoiser.transformer_blocks[0].attn.to_q.weight[3] *= 2


def loaded(denoiser: Any) -> None:
    denoiser.load_state_dict({name: 1.1 * tensor for name, tensor in denoiser.state_dict().items()})


def exchanged(denoiser: Any) -> None:
    for block in denoiser.single_transformer_blocks:
        block.attn.processor = Louder()


Change = Callable[[Any], None]
ON_THE_MODEL: dict[str, tuple[str, Change, Change]] = {
    # what is said, before the request, in the middle of it
    "edited in place": ("weights", lambda d: None, edited),
    "load_state_dict": ("weights", lambda d: None, loaded),
    "another parameter": ("weights", lambda d: None, new_parameter),
    "an adapter is put on": ("weights, adapters", lambda d: None, adapter),
    "an adapter is scaled": ("adapters", adapter, lambda d: d.set_adapters("style", 0.25)),
    "an adapter is switched off": ("adapters", adapter, lambda d: d.disable_adapters()),
    "attention is exchanged": ("attention", lambda d: None, exchanged),
}


@pytest.mark.parametrize("what", ON_THE_MODEL)
def test_whatever_changes_on_the_model_drops_the_state(what: str) -> None:
    said, before, change = ON_THE_MODEL[what]
    check("svd", said, before, change)


@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_state_is_under_the_stamp(method: str) -> None:
    check(method, "weights", lambda d: None, edited)


def check(method: str, said: str, before: Change, change: Change, given: Given | None = None) -> None:
    """Cached as long as nothing changes; after the change, what the changed model gives without any old state."""
    denoiser = tiny_denoiser()
    before(denoiser)
    stack = Stack(denoiser, steps=STEPS).cache(method, **METHODS[method])
    walk(stack, {}, range(AT))
    assert stack.report().steps[-1].kind != "full"
    change(denoiser)
    (got,) = walk(stack, given or {}, range(AT, AT + 1))
    report = stack.report()
    stack.undo()
    with torch.no_grad():
        assert torch.equal(got, denoiser(**at(AT, **(given or {})))[0])
    assert report.steps[-1].kind == "full" and len(report.steps) == AT + 1
    assert report.passes["cache"]["dropped"] == 1
    assert f"cached state dropped at step {AT}: it was made under other {said} (" in "\n".join(report.warnings)


@pytest.mark.parametrize("name", ["encoder_hidden_states", "pooled_projections", "img_ids", "txt_ids"])
@pytest.mark.parametrize("method", ["svd", "predictor-corrector"])
def test_another_prompt_or_grid_on_the_same_model(name: str, method: str) -> None:
    """Two loops that take turns: the other's step comes next, and is of the same shape."""
    check(method, f"conditioning ({name})", lambda d: None, lambda d: None, {name: at(0)[name].flip(0) + 0.5})


def test_the_same_prompt_in_other_memory_is_the_same() -> None:
    """`inputs` makes new tensors for every call: content counts. An edit in place is another prompt."""
    stack = Stack(tiny_denoiser(), steps=STEPS).cache("svd", **METHODS["svd"])
    given = {"encoder_hidden_states": at(0)["encoder_hidden_states"]}
    walk(stack, given, range(3))
    given["encoder_hidden_states"].mul_(1.5)
    walk(stack, given, range(3, 4))
    assert [record.kind for record in stack.report().steps] == ["full", "full", "cached", "full"]
    assert stack.report().passes["cache"]["dropped"] == 1


@pytest.mark.parametrize("method", ["svd", "easycache-published"])
def test_autocast_is_part_of_the_stamp(method: str) -> None:
    denoiser = tiny_denoiser()
    stack = Stack(denoiser, steps=STEPS).cache(method, **METHODS[method])
    walk(stack, {}, range(AT))
    with torch.autocast("cpu", torch.bfloat16):
        walk(stack, {}, range(AT, AT + 1))
    assert stack.report().steps[-1].kind == "full"
    assert "precision (" in stack.report().warnings[-1]


def test_as_many_steps_at_other_noise_levels() -> None:
    stack = Stack(tiny_denoiser(), steps=STEPS).cache("svd", **METHODS["svd"])
    walk(stack, {}, range(AT))
    clock = stack._target.clock
    clock.timetable = of_flow(SigmaSchedule((*clock.timetable.schedule.sigmas[:-1], 0.01)))
    walk(stack, {}, range(AT, AT + 1))
    assert stack.report().steps[-1].kind == "full"
    assert len(stack.report().steps) == AT + 1
    assert "a step does not follow the one before it" in stack.report().warnings[-1]


def test_noise_levels_written_into_the_scheduler_are_read_again(pipe: Any) -> None:
    stack = Stack(pipe, steps=STEPS).cache("svd", interval=12, warmup=2)

    def shift(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 5:
            pipe.scheduler.sigmas[7:] *= 0.998
        return {}

    stack("a red ring", num_inference_steps=STEPS, callback_on_step_end=shift, output_type="latent")
    assert [r.step for r in stack.report().steps if r.kind == "full"] == [0, 1, 6, 7]
    assert "a step does not follow the one before it" in stack.report().warnings[-1]


def test_two_loops_with_one_prompt_from_two_threads_and_two_tasks() -> None:
    """Nothing but the caller tells them apart where they go in step: every call is a full one, and right."""
    denoiser = tiny_denoiser()
    latents = [torch.randn(1, 64, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    stack = Stack(denoiser, steps=STEPS).cache("svd", interval=12, warmup=1)
    results: dict[tuple[int, int], torch.Tensor] = {}
    turns = threading.Barrier(2, timeout=60)

    def loop(mine: int) -> None:
        for step in range(6):
            for turn in range(2):
                turns.wait()
                if turn == mine:
                    results[mine, step] = walk(stack, {"hidden_states": latents[mine]}, range(step, step + 1))[0]

    threads = [threading.Thread(target=loop, args=(mine,)) for mine in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]

    async def task(mine: int) -> None:
        for step in range(6):
            results[mine + 2, step] = walk(stack, {"hidden_states": latents[mine]}, range(step, step + 1))[0]
            await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(task(0), task(1))

    asyncio.run(both())
    stack.undo()
    for (who, step), got in results.items():
        with torch.no_grad():
            assert torch.equal(got, denoiser(**at(step, hidden_states=latents[who % 2]))[0]), (who, step)
    assert len(results) == 24


TOKENS = torch.zeros(1, 4, 8)
STAMP = Stamp(1, "main", Conditions(), uniform(4), (1, 4, 8), torch.float32, torch.device("cpu"))
OTHERS: dict[str, Any] = {
    "request": 2, "branch": "uncond", "schedule": uniform(4, 3.0), "shape": (1, 8, 4), "dtype": torch.bfloat16,
    "device": torch.device("meta"), "joined": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", [f.name for f in fields(Stamp) if f.name != "conditions"])
def test_every_attribute_of_the_tokens_counts(name: str) -> None:
    other = replace(STAMP, **{name: OTHERS[name]})
    assert other != STAMP and other.differing(STAMP) == [name]


@pytest.mark.parametrize("name", [f.name for f in fields(Conditions)])
def test_every_condition_counts(name: str) -> None:
    asked = name == "conditioning"
    other = replace(STAMP, conditions=replace(Conditions(), **{name: (("guidance", 2),) if asked else "another"}))
    assert other != STAMP and other.differing(STAMP) == ["conditioning (guidance)" if asked else name]
