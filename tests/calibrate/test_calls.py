"""Call arguments reach every call that the package makes; prompts that are none are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from stack import Stack, StackError
from stack.calibrated.calibrate import calibrate
from stack.calibration.held_out import PICTURES
from stack.comparison.compare import compare
from stack.recipe import parse_recipe
from stack.reference.pipeline import ShapesFluxPipeline

from ..conftest import PROMPT, tiny_denoiser, tiny_pipe

STEPS = 14
OTHERS = ["a green circle", "a cyan star on a white background"]
CALL = {"guidance_scale": 2.0, "height": 32, "width": 16, "joint_attention_kwargs": {}}


class Spied(ShapesFluxPipeline):
    """Writes down what it is called with."""

    seen: list[dict[str, Any]]

    def __call__(self, prompt: Any = None, *args: Any, max_sequence_length: int = 16, **kwargs: Any) -> Any:
        assert not args
        self.seen.append({"prompt": prompt, **kwargs})
        return super().__call__(prompt, max_sequence_length=max_sequence_length, **kwargs)


def spied() -> Spied:
    plain = tiny_pipe()
    pipe = Spied(plain.scheduler, tiny_denoiser(), plain.prompt_encoder, size=16)
    pipe.set_progress_bar_config(disable=True)
    pipe.seen = []
    return pipe


def cached(pipe: Spied, method: str = "svd", **options: Any) -> Stack:
    return Stack(pipe, steps=STEPS).cache(method, **options)


def rounded(pipe: Spied, scheme: str, **options: Any) -> Stack:
    return Stack(pipe, steps=STEPS).quantize(scheme, **options)


RECIPE = parse_recipe({"steps": STEPS, "cache": {"method": "svd"}}, "r")
QUIET = {"progress": False}
MEASUREMENTS: dict[str, Callable[..., Any]] = {
    "calibrate": lambda pipe, **more: cached(pipe).calibrate([PROMPT, OTHERS[0]], OTHERS[1], trials=2, **more, **QUIET),
    "fit_gate": lambda pipe, **more: cached(pipe, "teacache").fit_gate(PROMPT, **more, **QUIET),
    "fit_budget": lambda pipe, **more: cached(pipe, max_error=0.5).fit_gate(PROMPT, **more, **QUIET),
    "fit_maps": lambda pipe, **more: cached(pipe, "fastcache-published").fit_maps(PROMPT, **more, **QUIET),
    "fit_bases": lambda pipe, **more: cached(pipe, "svd-published").fit_bases(PROMPT, **more, **QUIET),
    "fit_rounding": lambda pipe, **more: rounded(pipe, "nf4", feedback=True).fit_rounding(PROMPT, **more, **QUIET),
    "noise_floor": lambda pipe, **more: rounded(pipe, "int8", min_features=16).noise_floor(
        PROMPT, steps=2, **more, **QUIET
    ),
    "tune": lambda pipe, **more: calibrate(pipe, RECIPE, prompts=[PROMPT, *OTHERS], budget=20.0, **more, **QUIET),
    "compare": lambda pipe, **more: compare(
        pipe, RECIPE, prompts=PROMPT, steps=STEPS, compile_base=False, **more, **QUIET
    ),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_call_arguments_reach_every_call(name: str) -> None:
    pipe = spied()
    MEASUREMENTS[name](pipe, call=CALL)
    assert pipe.seen
    for given in pipe.seen:
        assert {key: given[key] for key in CALL} == CALL


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_what_cannot_be_passed_on_is_named_before_anything_runs(name: str) -> None:
    for call, words in (
        ({"heigth": 32}, "unknown argument of Spied 'heigth': did you mean 'height'"),
        ({"generator": None}, "call= has generator, which is set here: give seed="),
        ({"num_inference_steps": 3}, "call= has num_inference_steps, which is set here"),
        ([1], "call= must be arguments by name, or a function that gives them, got"),
        ({1: 2}, "call= must be arguments by name, or a function that gives them, got"),
    ):
        pipe = spied()
        with pytest.raises(StackError, match=words):
            MEASUREMENTS[name](pipe, call=call)
        assert not pipe.seen


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_what_the_pipeline_cannot_take_is_told_in_one_line(name: str) -> None:
    for call in ({"height": -1}, {"latents": "x"}):  # a RuntimeError and an AttributeError inside
        with pytest.raises(StackError, match=rf"Spied refused .* \(call= had {next(iter(call))}\)"):
            MEASUREMENTS[name](spied(), call=call)


@pytest.mark.parametrize("name", sorted(MEASUREMENTS.keys() - {"tune", "compare"}))
def test_a_seed_that_is_none_is_refused_before_anything_runs(name: str) -> None:
    for seed in ("x", 1.5, True, 2**63, None):
        pipe = spied()
        with pytest.raises(StackError, match=r"^seed: expected "):
            MEASUREMENTS[name](pipe, seed=seed)
        assert not pipe.seen


def test_a_budget_that_is_none_and_prompts_that_are_none() -> None:
    for budget, told in (("x", "budget: expected a finite number"), (-1, "more than 0 seconds"), (float("nan"), "nan")):
        with pytest.raises(StackError, match=told):
            cached(spied()).calibrate([PROMPT, OTHERS[0]], OTHERS[1], budget=budget)
    for measure in (cached(spied(), "svd-published").fit_bases, cached(spied(), "teacache").fit_gate):
        with pytest.raises(StackError, match="prompts: expected at least one, got none"):
            measure([])


def test_a_function_gives_arguments_prompt_by_prompt_and_embeddings_stand_for_prompts() -> None:
    pipe = spied()
    embeds, pooled, _ = pipe.encode_prompt(PROMPT)
    stack = Stack(pipe, steps=STEPS).cache("svd-published")
    stack.fit_bases([PROMPT, OTHERS[0]], progress=False, call=lambda prompts: {"guidance_scale": len(prompts[0])})
    assert [given["guidance_scale"] for given in pipe.seen] == [len(PROMPT), len(OTHERS[0])]
    pipe.seen.clear()
    given = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    stack.calibrate(["one", "two"], "three", trials=1, progress=False, call=given)
    assert all(seen["prompt"] is None for seen in pipe.seen)
    assert {len(seen["prompt_embeds"]) for seen in pipe.seen} == {1, 2, PICTURES}


@pytest.mark.parametrize("prompt", ["a purple elephant", 7, None])
def test_a_prompt_that_cannot_be_read_is_named_and_the_stack_left_as_it_was(prompt: Any) -> None:
    for method, run in (("svd-published", "fit_bases"), ("teacache", "fit_gate"), ("fastcache-published", "fit_maps")):
        stack = Stack(tiny_pipe(), steps=STEPS).cache(method)
        before = stack.passes
        with pytest.raises(
            StackError,
            match="elephant"
            if isinstance(prompt, str)
            else r"texts, got \[None\]"
            if prompt is None
            else f"got {prompt}",
        ):
            getattr(stack, run)([prompt], progress=False)
        assert stack.passes == before and not stack.applied


def tiny_dit() -> DiTPipeline:
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2, sample_size=8,
        num_embeds_ada_norm=1000, patch_size=2,
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8)
    pipe = DiTPipeline(transformer.eval(), vae.eval(), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_pipeline_of_class_labels_is_calibrated_on_labels() -> None:
    stack = Stack(tiny_dit(), steps=STEPS).cache("svd-published")
    found = stack.calibrate([1, 2], [3], trials=2, progress=False, call={"guidance_scale": 1.0})
    assert found.checked and found.full < STEPS
    assert stack.fit_bases(5, progress=False).width == 32
    floor = Stack(tiny_dit(), steps=STEPS).quantize("int8", min_features=8).noise_floor(4, steps=2, progress=False)
    assert len(floor.sigmas) == 2


def test_results_are_short_in_print() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("fastcache-published")
    assert (
        repr(stack.fit_maps(PROMPT, progress=False)) == "LinearMaps(family='flux', blocks=2, width=128, from 13 calls)"
    )
    bases = Stack(tiny_pipe(), steps=STEPS).cache("svd-published").fit_bases(PROMPT, progress=False)
    assert repr(bases).startswith("Bases(family='flux', blocks=2, width=128, ranks={") and len(repr(bases)) < 200


def test_progress_is_one_readable_line_at_a_time_and_can_be_turned_off(capsys: pytest.CaptureFixture[str]) -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("svd-published")
    stack.fit_bases([PROMPT, OTHERS[0]])
    stack.calibrate([PROMPT, OTHERS[0]], OTHERS[1], trials=2)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert lines[0] == "fit_bases: prompt 0 of 2, 0 s so far" and not out
    assert any(line.startswith("calibrate: recording 2 pictures, ") and line.endswith("s left") for line in lines)
    assert any(line.startswith("calibrate: checking, 2 of at most 2 trials, best ") for line in lines)
    assert not any("\x1b" in line or "\r" in line for line in lines)
    Stack(tiny_pipe(), steps=STEPS).cache("svd-published").fit_bases([PROMPT], progress=False)
    assert capsys.readouterr().err == ""
