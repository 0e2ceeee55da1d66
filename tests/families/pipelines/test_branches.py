"""Guidance branches of whole pipelines: neither sees the other's state, whenever guidance begins, ends or pauses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from stack import Stack

from .build import PIPELINES, STEPS, Whole, denoiser, draw, krea2, sd3, sd3_skip_layer, z_image
from .special import SPECIAL

OFF = {"guidance_scale": 1.0}
# How a pipeline is called without guidance.
ALONE: dict[str, dict[str, Any]] = {
    "FluxPipeline": {"true_cfg_scale": 1.0},
    "Flux2KleinPipeline, with a picture": OFF,
    "QwenImagePipeline": {"true_cfg_scale": 1.0},
    "QwenImageEditPlusPipeline": {"true_cfg_scale": 1.0},
    "WanPipeline": OFF,
    "WanPipeline, two denoisers": {**OFF, "guidance_scale_2": 1.0},
    "WanImageToVideoPipeline, per-token times": OFF,
    "HunyuanVideoPipeline": {"true_cfg_scale": 1.0},
    "Krea2Pipeline": {"guidance_scale": 0.0},
    "ChromaPipeline": {"guidance_scale": 0.0},
    "CogView4Pipeline": OFF,
    "Lumina2Pipeline": OFF,
}
CACHES = {"svd": {"interval": 3}, "first-block": {"threshold": 0.3}, "fora": {"interval": 2}}


def outputs(whole: Whole, run: Callable[[], Any]) -> list[torch.Tensor]:
    """What the denoisers return during a run, call by call."""
    seen: list[torch.Tensor] = []

    def note(_: Any, __: Any, out: Any) -> None:
        seen.append(torch.stack(out[0]) if isinstance(out[0], list) else out[0].clone())

    handles = [getattr(whole.pipe, name).register_forward_hook(note) for name in whole.denoisers]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


@contextmanager
def stepping(scheduler: Any, recorded: list[torch.Tensor] | None = None) -> Iterator[list[torch.Tensor]]:
    """What the scheduler is given, step by step; with a recorded run it goes along that run's latents instead."""
    given: list[torch.Tensor] = []
    inner = type(scheduler).step

    def step(self: Any, out: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self is scheduler:  # and not a copy that a plan tries
            given.append(out.clone())
            out = out if recorded is None else recorded[len(given) - 1]
        return inner(self, out, *args, **kwargs)

    with mock.patch.object(type(scheduler), "step", step):
        yield given


@pytest.mark.parametrize("method", CACHES)
@pytest.mark.parametrize("name", ALONE)
def test_each_branch_is_what_it_is_alone_along_the_same_latents(name: str, method: str) -> None:
    """A run with guidance, then one of each branch alone whose latents go the same way: the same outputs, exactly."""
    whole = (PIPELINES | SPECIAL)[name]()
    with Stack(whole.pipe, steps=STEPS).cache(method, **CACHES[method]) as stack:
        with stepping(whole.pipe.scheduler) as guided:
            both = outputs(whole, lambda: whole.call(stack))
        kinds = [record.kind for record in stack.report().steps]
        assert (len(both) == 2 * STEPS == len(kinds) and "cached" in kinds) or method == "first-block"
        swapped = {k.removeprefix("negative_"): v for k, v in whole.given.items() if k.startswith("negative_")}
        for number, prompt in enumerate(({}, swapped)):
            with stepping(whole.pipe.scheduler, guided):
                alone = outputs(whole, lambda prompt=prompt: whole.call(stack, **prompt, **ALONE[name]))
            assert [r.kind for r in stack.report().steps] == kinds[number::2]
            assert all(torch.equal(mine, other) for mine, other in zip(alone, both[number::2], strict=True))


def test_a_third_call_leaves_the_others_their_state_and_has_its_own() -> None:
    """Skip-layer guidance from the third step to the seventh: two samples in one call, one in the other."""
    whole, plain = sd3_skip_layer(), sd3()
    with Stack(whole.pipe, steps=STEPS).cache("svd", interval=3) as stack:
        with stepping(whole.pipe.scheduler) as three:
            seen = outputs(whole, lambda: whole.call(stack))
        records = stack.report().steps
    with Stack(plain.pipe, steps=STEPS).cache("svd", interval=3) as stack, stepping(plain.pipe.scheduler, three):
        alone = outputs(plain, lambda: plain.call(stack))
    main = [out for out, record in zip(seen, records, strict=True) if record.branch == "main"]
    assert all(torch.equal(mine, other) for mine, other in zip(main, alone, strict=True))
    third = [(record.step, record.kind) for record in records if record.branch == "main (2)"]
    assert third == [(2, "full"), (3, "cached"), (4, "cached"), (5, "full"), (6, "cached")]


@pytest.mark.parametrize("method", ["first-block", "fora"])
def test_a_cache_that_has_to_see_every_block_runs_calls_that_leave_some_out_in_full(method: str) -> None:
    whole = sd3(skip_guidance_layers=[0], skip_layer_guidance_start=0.2, skip_layer_guidance_stop=0.8)
    plain = whole.call()
    with Stack(whole.pipe, steps=STEPS).cache(method, **CACHES[method]) as stack:
        whole.call(stack)
        report = stack.report()
    assert {record.kind for record in report.steps if record.branch == "main (2)"} == {"full"}
    assert any("leave blocks out (skip_layers) run in full" in text for text in report.warnings)
    assert torch.equal(whole.call(), plain)


def guided_between(first: int, last: int) -> dict[str, Any]:
    """Guidance from one step to another, set by a callback, as some users do."""

    def callback(pipe: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 3.0 if first <= step + 1 < last else 0.0
        return given

    return {"callback_on_step_end": callback}


@pytest.mark.parametrize(("first", "last"), [(0, 4), (2, 6), (5, 8)])
def test_guidance_that_begins_and_ends_in_mid_run(first: int, last: int) -> None:
    """The branch that goes through has all its cached steps; the other begins with a full one."""
    whole = krea2()
    given = guided_between(first, last)
    plain = whole.call(**given)
    with Stack(whole.pipe, steps=STEPS).cache("svd", interval=1) as stack:
        assert torch.equal(whole.call(stack, **given), plain)
    with Stack(whole.pipe, steps=STEPS).cache("svd", interval=3) as stack:
        whole.call(stack, **given)
        report = stack.report()
    marks = {b: [(r.step, r.kind[0]) for r in report.steps if r.branch == b] for b in ("main", "main (2)")}
    assert "".join(kind for _, kind in marks["main"]) == "fffccfcc"
    # The call's own scale is that of the first step.
    steps = [step for step, _ in marks["main (2)"] if step]
    assert steps == [step for step in range(first, last) if step]
    assert next(kind for step, kind in marks["main (2)"] if step == steps[0]) == "f" or first == 0
    assert report.passes["cache"]["dropped"] == (1 if first else 0)


def test_a_branch_that_pauses_starts_anew() -> None:
    """What it kept before the pause is not used after it."""
    whole = krea2()

    def callback(pipe: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 0.0 if 2 <= step < 5 else 3.0
        return given

    with Stack(whole.pipe, steps=STEPS).cache("reuse", count=2) as stack:
        whole.call(stack, callback_on_step_end=callback)
        report = stack.report()
    pause = [(r.step, r.kind) for r in report.steps if r.branch == "main (2)"]
    assert [step for step, _ in pause] == [0, 1, 2, 6, 7] and dict(pause)[6] == "full"
    assert any("cached state dropped at step 6: it was made under other joined" in text for text in report.warnings)


def test_a_batch_that_loses_its_guidance_half_starts_anew() -> None:
    """Z-Image leaves the negative half out of its batch late in the run."""
    whole = z_image()
    given = {"cfg_truncation": 0.5}
    plain = whole.call(**given)
    with Stack(whole.pipe, steps=STEPS).cache("svd", interval=1) as stack:
        assert torch.equal(whole.call(stack, **given), plain)
    with Stack(whole.pipe, steps=STEPS).cache("reuse", count=2) as stack:
        sizes = [len(out) for out in outputs(whole, lambda: whole.call(stack, **given))]
        records = stack.report().steps
    smaller = sizes.index(1)
    assert sizes == [2] * smaller + [1] * (STEPS - smaller) and 1 < smaller < STEPS - 1
    assert records[0].kind == records[smaller].kind == "full" and records[1].kind == "cached"


class Alternating(DiffusionPipeline):
    """Calls its two branches in another order on every other step, and names neither."""

    def __init__(self, transformer: Any, scheduler: Any):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, num_inference_steps: int = STEPS, turns: bool = True) -> torch.Tensor:
        prompts = [draw(1, 5, 40, seed=2), draw(1, 5, 40, seed=3)]
        latents = draw(1, 16, 8, 8, seed=7)
        self.scheduler.set_timesteps(num_inference_steps)
        self.scheduler.set_begin_index(0)
        for step, time in enumerate(self.scheduler.timesteps):
            outs = {}
            for number in (1, 0) if turns and step % 2 else (0, 1):
                outs[number] = self.transformer(
                    hidden_states=latents, timestep=time.expand(1), encoder_hidden_states=prompts[number],
                    pooled_projections=draw(1, 28), return_dict=False,
                )[0]  # fmt: skip
            latents = self.scheduler.step(3 * outs[0] - 2 * outs[1], time, latents, return_dict=False)[0]
        return latents


def test_unnamed_branches_are_told_apart_by_what_they_ask_for_and_not_by_their_order() -> None:
    pipe = Alternating(denoiser("SD3Transformer2DModel", sample_size=8), FlowMatchEulerDiscreteScheduler(shift=3.0))
    with Stack(pipe, steps=STEPS).cache("svd", interval=3) as stack:
        fixed = stack(turns=False)
        turning = stack(turns=True)
        report = stack.report()
    assert torch.equal(turning, fixed)
    assert [record.kind for record in report.steps].count("cached") == 8
    assert report.passes["cache"]["dropped"] == 0
