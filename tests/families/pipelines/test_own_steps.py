"""As many steps as a pipeline takes by itself, where nobody names a number."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stack import Stack
from stack.comparison.question import asked
from stack.recipe import Recipe, parse_recipe
from stack.runtime.call_arguments import own_steps

from .build import Whole, flux, flux2, sd3, wan, z_image
from .special import ideogram4, ltx2, modular_flux

OWN: dict[str, tuple[Callable[[], Whole], int]] = {
    "FluxPipeline": (flux, 28),
    "Flux2Pipeline": (flux2, 50),
    "Ideogram4Pipeline": (ideogram4, 48),
    "LTX2Pipeline": (ltx2, 30),
    "StableDiffusion3Pipeline": (sd3, 28),
    "WanPipeline": (wan, 50),
    "ZImagePipeline": (z_image, 50),
    "a modular FluxPipeline": (modular_flux, 50),
}


@pytest.mark.parametrize("name", OWN)
def test_a_pipelines_own_number_is_planned_for(name: str) -> None:
    build, steps = OWN[name]
    pipe = build().pipe
    assert own_steps(pipe) == steps
    assert Stack(pipe).plan.facts_after.steps == steps
    assert Stack(pipe, steps=6).plan.facts_after.steps == 6


def test_a_call_without_a_number_takes_the_steps_that_were_planned() -> None:
    whole = flux()
    with Stack(whole.pipe).cache("reuse", interval=4, warmup=1) as stack:
        stack(**{**whole.given, "true_cfg_scale": 1.0}, output_type="latent")
        report = stack.report()
    assert len(report.steps) == 28 and report.full_steps == 7
    assert report.warnings == []


def test_a_bare_denoiser_and_what_says_no_number_take_fifty() -> None:
    pipe = flux().pipe
    assert own_steps(pipe.transformer) == 50 == Stack(pipe.transformer).plan.facts_after.steps


def test_a_recipe_that_names_no_steps_takes_those_of_the_pipeline() -> None:
    read = parse_recipe({"cache": {"method": "svd"}}, "plain")
    assert read.steps is None
    assert Stack.from_recipe(read, flux().pipe).plan.facts_after.steps == 28
    assert Stack.from_recipe(parse_recipe({"steps": 12, "cache": {}}, "own"), flux().pipe).facts.steps == 12


def test_a_comparison_without_a_number_takes_the_most_that_a_recipe_or_the_pipeline_has() -> None:
    pipe, plain = flux().pipe, Recipe("r", stages={"cache": {}})
    own = Recipe("own", steps=40, stages={"cache": {}})
    found = [asked(pipe, recipes, ["one"], None, 0, "flux", {}, [], False, False) for recipes in (plain, [plain, own])]
    assert [question.header.steps for question in found] == [28, 40]
