"""The solver as a pass: what it plans, what a pipeline makes with it, and that nothing is left of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from stack import Stack, StackError
from stack.recipe import Recipe, load_recipe, parse_recipe, recipe_toml
from stack.solver.solver import Solver

from ..conftest import picture, tiny_denoiser, tiny_pipe
from ..models.test_dit import draw
from ..models.test_dit import tiny as tiny_dit
from ..samplers import DETERMINISTIC

STEPS = 50
ON_FLOW = (
    "FlowMatchEulerDiscrete(shift=3.0)",
    "UniPCMultistep(prediction_type=flow_prediction, use_flow_sigmas=True, flow_shift=3.0)",
)


def test_the_plan_says_what_is_taken_and_where() -> None:
    text = Stack(tiny_pipe()).solver(steps=6).explain()
    assert "planned for 6 steps, taken by the solver; asked for 50" in text
    assert "1. solver: 6 second-order steps in place of 50, 8.33x fewer" in text
    assert "at steps 0 13 26 36 44 48 of the scheduler's own" in text


def test_a_call_takes_as_many_steps_of_the_ladder_that_it_asks_for() -> None:
    pipe = tiny_pipe()
    own, before = pipe.scheduler, picture(pipe, STEPS)
    stack = Stack(pipe).solver(steps=6)
    made = picture(stack, STEPS)
    assert len(stack.report().steps) == 6 and stack.report().passes["solver"]["places"] == [0, 13, 26, 36, 44, 48]
    assert 1e-4 < float((made - before).abs().max()) < 0.05
    assert torch.equal(picture(stack, 6), made), "the solver's own number has the planned ladder"
    assert torch.equal(picture(stack, 40), picture(stack, 40)) and not torch.equal(picture(stack, 40), made)
    assert len(stack.report().steps) == 6 and stack.report().passes["solver"]["places"][-1] < 40
    picture(stack, 4)
    assert len(stack.report().steps) == 4, "no more than there are"
    stack.undo()
    assert pipe.scheduler is own and torch.equal(picture(pipe, STEPS), before)


@pytest.mark.parametrize("name", ON_FLOW)
def test_every_step_at_the_first_order_is_the_own_scheduler(name: str) -> None:
    pipe = tiny_pipe()
    pipe.scheduler = DETERMINISTIC[name]()
    before = picture(pipe, 14)
    with Stack(pipe, steps=14).solver(steps=14, order=1) as stack:
        assert float((picture(stack, 14) - before).abs().max()) < 1e-5
    assert torch.equal(picture(pipe, 14), before)


def test_every_step_of_ddim_under_guidance() -> None:
    pipe = tiny_dit()
    before = draw(pipe)
    with Stack(pipe, steps=14).solver(steps=14, order=1) as stack:
        assert float((draw(stack) - before).abs().max()) < 1e-5 * float(before.abs().max())
    with Stack(pipe, steps=14).solver(steps=7) as stack:
        assert 1e-4 < float((draw(stack) - before).norm() / before.norm()) < 0.2
        assert len(stack.report().steps) == 7
    assert torch.equal(draw(pipe), before)


def test_a_cache_behind_it_plans_on_its_steps() -> None:
    stack = Stack(tiny_pipe()).solver(steps=6).cache("svd")
    solver, cache = stack.plan.stages
    at = [0, 13, 26, 36, 44, 48]
    assert cache.before.levels == tuple(solver.before.levels[i] for i in at)
    assert (cache.before.steps, cache.before.asked) == (6, 50)
    picture(stack, STEPS)
    assert [step.kind for step in stack.report().steps].count("full") == 4
    stack.undo("cache")
    assert [step.kind for step in _steps_of(stack)] == ["full"] * 6
    stack.undo()


def _steps_of(stack: Stack) -> Any:
    picture(stack, STEPS)
    return stack.report().steps


def test_asked_places_are_taken() -> None:
    stack = Stack(tiny_pipe()).solver(places=[0, 10, 30])
    picture(stack, STEPS)
    assert stack.report().passes["solver"]["places"] == [0, 10, 30]
    assert "as asked" in stack.explain()
    picture(stack, 25)
    assert stack.report().passes["solver"]["places"] == [0, 5, 15]
    stack.undo()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "expected a number of steps, got none"),
        ({"places": (3, 5)}, r"places must rise from 0, got \[3, 5\]"),
        ({"places": (0, 5, 5)}, r"places must rise from 0, got \[0, 5, 5\]"),
        ({"places": (0, 5), "steps": 3}, "has 3 steps and 2 places"),
        ({"steps": 6, "order": 3}, "order"),
        ({"steps": 0}, "steps"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(StackError, match=words):
        Solver(**options)


def test_what_cannot_work_is_refused_by_the_plan() -> None:
    with pytest.raises(StackError, match=r"bare denoiser .* \(rule solver-needs-pipeline\)"):
        _ = Stack(tiny_denoiser()).solver(6).plan
    with pytest.raises(StackError, match=r"places lie within 0..19, got 30"):
        _ = Stack(tiny_pipe(), steps=20).solver(places=(0, 30)).plan
    pipe = tiny_pipe()
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    with pytest.raises(StackError, match=r"adds noise of its own.* \(rule solver-sampler\)"):
        _ = Stack(pipe).solver(6).plan
    assert "6 steps of a ladder of 5: 0 are left out" in Stack(tiny_pipe(), steps=5).solver(6).explain()


def test_what_would_go_unnoticed_is_refused() -> None:
    pipe = tiny_pipe()
    stack = Stack(pipe).solver(6).apply()
    with pytest.raises(StackError, match=r"would write the solver's scheduler"):
        pipe.save_pretrained("nowhere")
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(StackError, match=r"scheduler is no longer the solver's"):
        picture(stack, STEPS)
    stack.undo()


def test_what_changes_between_calls_leaves_the_run_whole() -> None:
    """The passes are put on anew at the first step of the next call, whose schedule is made by then."""
    changed, fresh = tiny_pipe(), tiny_pipe().to(torch.bfloat16)
    with Stack(changed).solver(6).cache("svd") as stack, Stack(fresh).solver(6).cache("svd") as other:
        picture(stack, STEPS)
        changed.to(torch.bfloat16)
        assert torch.equal(picture(stack, STEPS), picture(other, STEPS))
        assert any("planned for anew: dtype" in text for text in stack.report().warnings)
        assert torch.equal(picture(stack, STEPS), picture(other, STEPS))
    assert type(changed.scheduler) is diffusers.FlowMatchEulerDiscreteScheduler


def test_a_recipe_keeps_it(tmp_path: Path) -> None:
    recipe = parse_recipe({"steps": 20, "solver": {"places": [0, 3, 9]}, "cache": {"method": "svd"}}, "mine")
    (tmp_path / "mine.toml").write_text(recipe_toml(recipe))
    read = load_recipe(str(tmp_path / "mine.toml"))
    assert read == Recipe("mine", steps=20, stages=recipe.stages, file=read.file, folder=tmp_path)
    stack = Stack.from_recipe(read, tiny_pipe())
    assert stack.passes[0] == Solver(places=(0, 3, 9)) and stack.plan.facts_after.steps == 3
    with pytest.raises(StackError, match=r"unknown option of .solver. in recipe x 'step': did you mean 'steps'"):
        parse_recipe({"solver": {"step": 6}}, "x")


def test_a_saved_stack_keeps_it(tmp_path: Path) -> None:
    pipe = tiny_pipe()
    stack = Stack(pipe, steps=20).quantize("int8", min_features=64).solver(6)
    made = picture(stack, 20)
    stack.save(tmp_path / "saved")
    loaded = Stack.load(tmp_path / "saved", other := tiny_pipe())
    assert (loaded.facts.steps, loaded.plan.facts_after.steps) == (20, 6)
    assert torch.equal(picture(loaded, 20), made)
    assert type(pipe.scheduler).__name__ == "PlacedSolver"
    stack.freeze().undo("solver")
    loaded.undo()
    assert type(pipe.scheduler) is type(other.scheduler) is diffusers.FlowMatchEulerDiscreteScheduler


def test_places_of_another_number_of_steps_keep_their_noise_levels() -> None:
    """A recipe's places are of 50 steps; on 20 they are where the noise is as it was there."""
    solver = Solver(places=(0, 23, 33, 43, 48), of=50)
    with Stack(tiny_pipe(), steps=20).add(solver) as stack:
        picture(stack, 20)
        places = stack.report().passes["solver"]["places"]
    assert places == [0, 9, 13, 17, 19]
    with pytest.raises(StackError, match=r"within 0..39, got 48: say how many steps they are of, such as of=50"):
        Stack(tiny_pipe(), steps=20).add(replace(solver, of=40)).apply()
