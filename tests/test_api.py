"""What `from stack import ...` gives: the commands as functions, stacks as data and back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import stack as package
from stack import (
    Comparison,
    Recipe,
    Stack,
    StackError,
    calibrate,
    compare,
    explain,
    load,
    load_recipe,
    recipe_toml,
    run,
    tune,
)

from .conftest import PROMPT, picture, tiny_pipe
from .pipelines.build import flux

STEPS = 14


def test_every_name_is_there_and_what_it_says() -> None:
    assert sorted(package.__all__) == package.__all__
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_names_stay_functions_once_their_packages_are_loaded() -> None:
    """A package of the same name would take the function's place as soon as it is imported."""
    names = [name for name in package.__all__ if name.islower()]
    code = f"import stack\nfor _ in range(2):\n    assert all(callable(getattr(stack, name)) for name in {names})"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_and_loading_print_nothing_of_other_libraries() -> None:
    code = "from stack import Stack, load\nStack(load('shapes-flux', device='cpu'), steps=4)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_shipped_model_has_the_dtype_of_the_command_line() -> None:
    from stack.core.facts import best_dtype
    from stack.reference.load import load as load_reference

    fastest = best_dtype(torch.device("cpu"))
    assert load("shapes-flux", device="cpu").transformer.dtype is fastest
    assert load_reference("shapes-flux").transformer.dtype is fastest


def test_a_stack_becomes_a_recipe_and_an_equal_stack_again(pipe: Any, tmp_path: Path) -> None:
    made = (
        Stack(pipe, steps=STEPS)
        .quantize("int8", min_features=16)
        .cache("svd", full_steps=(0, 1, 2, 6, 10), steps=STEPS)
    )
    recipe = made.to_recipe("mine", "for a test")
    assert (recipe.name, recipe.model, recipe.steps) == ("mine", "flux", STEPS)
    (tmp_path / "mine.toml").write_text(recipe_toml(recipe))
    assert load_recipe(str(tmp_path / "mine.toml")) == recipe
    for given in (recipe, str(tmp_path / "mine.toml"), tmp_path / "mine.toml"):
        again = Stack.from_recipe(given, pipe)
        assert again.passes == made.passes and again.facts.steps == STEPS


def test_a_stack_says_what_it_is(pipe: Any) -> None:
    made = Stack(pipe, steps=STEPS).cache("svd", interval=4)
    words = "<Stack on ShapesFluxPipeline: 14 steps, cache(method='svd', interval=4), {}applied>"
    assert repr(made) == words.format("not ")
    with made:
        assert repr(made) == words.format("") and Stack.of(pipe) is made
    with pytest.raises(StackError, match="carries no stack"):
        Stack.of(pipe)


def test_a_report_as_json(pipe: Any) -> None:
    with Stack(pipe, steps=STEPS).cache("svd", interval=4, warmup=2) as made:
        picture(made, STEPS)
        report = made.report()
    read = json.loads(report.to_json())
    assert read["full_steps"] == report.full_steps == 5 and read["branches"] == 1
    assert [step["kind"] for step in read["steps"]] == [step.kind for step in report.steps]
    assert read["steps"][3]["computed"]["linears"] == 0.0 and read["cache_bytes"] == report.cache_bytes


def test_compare_takes_a_stack_and_puts_it_back(pipe: Any) -> None:
    made = Stack(pipe, steps=STEPS).cache("svd", interval=4, warmup=2).apply()
    before = picture(made, STEPS)
    found = compare(made, prompts=[PROMPT], size="16x16", call={"guidance_scale": 2.0}, compile_base=False)
    assert isinstance(found, Comparison) and made.applied
    assert torch.equal(picture(made, STEPS), before)
    assert found.record["recipe"] == "stack" and found.record["steps"] == STEPS
    assert found.record["call"] == {"width": 16, "height": 16, "guidance_scale": 2.0}
    assert str(found).startswith(found.verdict) and json.loads(found.to_json())["verdict"] == found.verdict


@pytest.mark.parametrize("function", [compare, calibrate, tune])
def test_what_draws_pictures_wants_a_pipeline(function: Any, pipe: Any) -> None:
    given = {"prompts": [PROMPT] * 3}
    with pytest.raises(StackError, match=r"\(\) draws pictures: expected a pipeline, got a bare denoiser$"):
        function(pipe.transformer, "fast", **given)
    with pytest.raises(StackError, match=r"expected a pipeline, got 'shapes-flux'; try load\('shapes-flux'\)$"):
        function("shapes-flux", "fast", **given)


def test_what_wants_a_stack_or_a_recipe_says_so(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"run\(\) draws with a stack: expected Stack\(pipe\), got ShapesFluxPipeline"):
        list(run(pipe, [PROMPT], tmp_path))
    with pytest.raises(StackError, match=r"run\(\) draws pictures: expected a pipeline, got a bare denoiser"):
        list(run(Stack(pipe.transformer), [PROMPT], tmp_path))
    with pytest.raises(StackError, match=r"recipe: expected a Recipe, a shipped name or .*, got <Stack on Shapes"):
        explain(Stack(pipe))


def test_a_stack_without_passes_is_not_compared(pipe: Any) -> None:
    with pytest.raises(StackError, match="stack has no passes: expected at least one to compare"):
        compare(Stack(pipe, steps=STEPS), prompts=[PROMPT])


def test_stacks_and_recipes_are_compared_side_by_side(pipe: Any) -> None:
    recipe = Recipe("mild", steps=STEPS, stages={"cache": {"method": "svd", "interval": 2}})
    bold = Stack(pipe, steps=STEPS).cache("svd", interval=6)
    found = compare(pipe, [recipe, bold], prompts=1, compile_base=False, progress=False)
    assert found.record["recipe"] == ["mild", "stack-2"]
    rows = {row["name"]: row for row in found.record["rows"]}
    assert rows["mild"]["full_steps"] > rows["stack-2"]["full_steps"]
    assert {"fewer-steps@mild", "fewer-steps@stack-2"} <= rows.keys()


def test_run_writes_what_the_stack_draws(pipe: Any, tmp_path: Path) -> None:
    made = list(run(Stack(pipe, steps=4), [PROMPT, "a green circle"], tmp_path / "out", seed=3))
    assert [one.path.name for one in made] == ["000-a-red-ring-left-of-a-blue-star.png", "001-a-green-circle.png"]
    assert [one.seed for one in made] == [3, 4] and made[0].as_dict()["report"]["full_steps"] == 4
    with pytest.raises(StackError, match="holds pictures of another run"):
        list(run(Stack(pipe, steps=5), [PROMPT], tmp_path / "out", seed=3))


def test_run_takes_the_arguments_that_compare_takes(tmp_path: Path) -> None:
    stack = Stack(tiny_pipe(), steps=2)
    (made,) = run(stack, [PROMPT], tmp_path / "out", size="24x8", guidance=2.5, call={"max_sequence_length": 16})
    assert Image.open(made.path).size == (24, 8)
    asked = {"width": 24, "height": 8, "guidance_scale": 2.5, "max_sequence_length": 16}
    again = stack(PROMPT, **asked, generator=torch.Generator().manual_seed(0)).images[0]
    assert Image.open(made.path).tobytes() == again.tobytes()
    with pytest.raises(StackError, match="makes pictures: expected no --frames, got 9"):
        list(run(stack, [PROMPT], tmp_path / "other", frames=9))
    with pytest.raises(StackError, match="holds pictures of another run"):
        list(run(stack, [PROMPT], tmp_path / "out"))
    assert not (tmp_path / "other").exists()


def test_a_stack_that_is_on_its_model_is_calibrated_and_on_again(pipe: Any) -> None:
    stack = Stack(pipe, steps=STEPS).cache("svd", interval=4).apply()
    before = picture(stack, STEPS)
    found, _ = calibrate(stack, prompts=3, full_steps=4, budget=5, progress=False)
    assert len(found.stages["cache"]["full_steps"]) == 4
    assert stack.applied and torch.equal(picture(stack, STEPS), before)


def test_what_a_pipeline_cannot_draw_is_one_line(tmp_path: Path) -> None:
    tiny = flux(torch.float32)
    size = {**tiny.given, "height": 1, "width": 1}  # no token is left: an index error deep inside
    size.pop("output_type")
    with pytest.raises(StackError, match=r"FluxPipeline refused 'a red ring': .* \(call= had height, width, "):
        list(run(Stack(tiny.pipe, steps=2).cache("svd"), ["a red ring"], tmp_path / "out", call=size))


def test_explain_is_text_and_data() -> None:
    found = explain("flux-dev", assume="h100", size="512x512")
    assert str(found) == found.text and "for NVIDIA H100" in found.text
    assert [entry["stage"] for entry in found.as_dict()["passes"]] == [p.stage for p in found.plan.passes()]


def test_calibrate_without_a_recipe_wants_a_stack(pipe: Any) -> None:
    with pytest.raises(StackError, match="expected a recipe, or a Stack as its model"):
        calibrate(pipe, prompts=[PROMPT])


def test_what_the_commands_list_is_data() -> None:
    assert {"shapes-flux", "shapes-dit", "shapes-video"} <= package.list_models().keys()
    assert "flux-turbo-alpha" in {card.name for card in package.list_adapters()}
    assert "sparse-does-not-pay" in {rule.name for rule in package.list_rules()}
    assert Stack(tiny_pipe(), steps=STEPS).add(package.Cache("svd")).passes[0].stage == "cache"
