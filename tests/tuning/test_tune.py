"""The whole search on a small pipeline."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from stack import Stack, StackError
from stack.recipe import load_recipe, parse_recipe
from stack.tuning.results import COLUMNS, lines, named, print_front, save, verdict
from stack.tuning.space import Space
from stack.tuning.study import CALIBRATED
from stack.tuning.tryout import Tryout
from stack.tuning.tune import Tuned, tune

from ..conftest import PROMPT, picture, tiny_pipe
from .test_limits import figures

STEPS, BUDGET = 14, 60.0  # seconds, of which calibration takes all that it is given
PROMPTS = [PROMPT, "a green circle", "a cyan star on a white background"]


def search(tmp_path: Path, **more: Any) -> Tuned:
    given = {"steps": STEPS, "trials": 6, "budget": BUDGET, "compile_base": False, "study": tmp_path / "study.db"}
    return tune(tiny_pipe(), prompts=PROMPTS, **{**given, **more})


def test_what_is_chosen_keeps_its_limit_when_measured_again(tmp_path: Path) -> None:
    pipe = tiny_pipe()
    before = picture(pipe, STEPS)
    found = tune(pipe, prompts=PROMPTS, min_psnr=25, steps=STEPS, trials=6, budget=BUDGET, compile_base=False)
    assert torch.equal(picture(pipe, STEPS), before)
    assert found.recipe is not None and found.chosen is not None and not found.partial
    assert found.chosen.figures.psnr >= 25 and found.recipe.notes["psnr"] == round(found.chosen.figures.psnr, 3)
    assert found.recipe.notes["tuned_for"] == "min_psnr=25"
    paths = save(found, tmp_path / "out", "tiny", "cpu")
    assert [path.name for path in paths] == ["tune.json", "tuned.toml", "front.png"]
    recipe = load_recipe(str(tmp_path / "out" / "tuned.toml"))
    assert recipe.stages == found.chosen.stages and recipe.steps == STEPS
    kept = json.loads(paths[0].read_text())
    assert kept["chosen"]["psnr"] == found.chosen.figures.psnr and kept["verdict"] == verdict(found)
    assert kept["chosen"]["name"] == named(recipe.stages) and len(kept["tried"]) == len(found.tried)
    with Stack.from_recipe(recipe, pipe) as stack:
        picture(stack, STEPS)
    figures = found.chosen.figures
    assert verdict(found) == (
        f"{named(recipe.stages)}: {figures.speedup:.2f}x as fast as the plain model, {figures.psnr:.1f} dB "
        "on held-out prompts, within min_psnr=25"
    )
    nearly = replace(found.chosen, figures=replace(figures, psnr=24.93))
    assert verdict(replace(found, chosen=nearly)).endswith(
        "24.9 dB on held-out prompts, within min_psnr=25, to a tenth of a dB"
    )
    told = io.StringIO()
    print_front(found, Console(width=200, file=told, color_system=None))
    first, headings, *rows, last = told.getvalue().splitlines()
    assert first == verdict(found) and headings.split()[:2] == ["stack", "speedup"] and len(rows) == len(found.checked)
    assert last.startswith("medians over 2 held-out pictures; the plain model, eager, takes ")
    table = lines(found)
    assert all(len(line) == len(COLUMNS) for line in table) and [line[-1] for line in table].count("chosen") == 1


def test_what_a_search_needs() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).solver(4).apply()
    with pytest.raises(StackError, match=r"the pipeline carries a stack: expected one without, or the stack"):
        tune(stack.pipe, prompts=PROMPTS, min_psnr=25)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"trials": 0}, "trials"),
        ({"budget": "x"}, "budget"),
        ({"trials": 1.5}, "trials"),
    ]
    for given, name in wrong:
        with pytest.raises(StackError, match=name):
            tune(tiny_pipe(), prompts=PROMPTS, min_psnr=25, **given)


def test_a_limit_that_nothing_keeps_gives_no_recipe(tmp_path: Path) -> None:
    found = search(tmp_path, min_psnr=98, trials=4)
    assert found.recipe is None and found.chosen is not None and found.chosen.excess > 0
    assert verdict(found).startswith("nothing that was tried keeps min_psnr=98; the nearest is ")
    assert all(line[-1] == "beyond the limits" for line in lines(found))


@pytest.fixture
def no_rivals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of so small a model decide nothing."""
    monkeypatch.setattr("stack.tuning.tune.beats", lambda one, other: False)


def test_a_solver_that_misses_the_limit_is_tried_at_searched_places(tmp_path: Path, no_rivals: None) -> None:
    found = search(tmp_path, min_psnr=34.5, trials=12)
    solvers = [one for one in found.tried if "solver" in one.stages]
    (placed,) = [one for one in solvers if one.how == CALIBRATED]
    others = [one for one in solvers if one.stages.get("quantize") == placed.stages.get("quantize") and one != placed]
    assert all(one.excess and one.stages["solver"] == {"steps": 2} for one in others) and others
    assert not placed.excess and placed.figures.psnr > max(one.figures.psnr for one in others) + 2
    assert named(placed.stages).endswith("solver, 2 steps fitted")
    assert placed.stages["solver"]["of"] == STEPS and len(placed.stages["solver"]["places"]) == 2
    assert [len(row) for row in placed.stages["solver"]["corrections"]] == [2, 3]


def test_fewer_solver_steps_are_tried_while_the_limit_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_rivals: None
) -> None:
    monkeypatch.setattr("stack.tuning.tune.FEWEST_STEPS", 1)
    found = search(tmp_path, min_psnr=15)
    placed = [one.stages["solver"]["places"] for one in found.tried if one.how == CALIBRATED and "solver" in one.stages]
    assert [len(places) for places in placed] == [2, 1]


def placed(monkeypatch: pytest.MonkeyPatch, search: Callable[[], Tuned]) -> list[tuple[str, int]]:
    """Stage and number of steps of every stack whose steps a search places."""
    asked: list[tuple[str, int]] = []
    for name, stage, option in (("fitted", "solver", "steps"), ("calibrated", "cache", "count")):

        def note(run: object, recipe: Any, *_: object, stage: str = stage, option: str = option) -> Any:
            asked.append((stage, recipe.stages[stage][option]))
            return recipe.stages

        monkeypatch.setattr(f"stack.tuning.tune._Search.{name}", note)
    search()
    return asked


def test_no_steps_are_placed_that_are_far_beyond_the_limit(monkeypatch: pytest.MonkeyPatch, no_rivals: None) -> None:
    """Three steps of a solver have 41 dB here, two 35; placing them gives a few dB more."""
    monkeypatch.setattr("stack.tuning.space.Space.first", lambda space: [])
    monkeypatch.setattr(Space, "choose", lambda space, chooser: {"solver": {"steps": 3}})
    more: dict[str, Any] = {"prompts": PROMPTS, "steps": STEPS, "trials": 1, "compile_base": False, "progress": False}
    assert placed(monkeypatch, lambda: tune(tiny_pipe(), min_psnr=20, **more)) == [("solver", 3), ("solver", 2)]
    assert placed(monkeypatch, lambda: tune(tiny_pipe(), min_psnr=42, **more)) == [("solver", 3)]


def test_no_steps_are_placed_of_a_stage_that_another_beats_in_time_and_quality(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = iter([{"solver": {"steps": 3}}, {"cache": {"method": "svd", "count": 9}}])
    monkeypatch.setattr("stack.tuning.space.Space.first", lambda space: [])
    monkeypatch.setattr(Space, "choose", lambda space, chooser: next(chosen))
    monkeypatch.setattr(
        Tryout, "figures", lambda run, stages, *_: figures(*((44, 4) if "solver" in stages else (43, 2)))
    )
    more: dict[str, Any] = {"prompts": PROMPTS, "steps": STEPS, "trials": 2, "compile_base": False, "progress": False}
    assert {stage for stage, _ in placed(monkeypatch, lambda: tune(tiny_pipe(), min_psnr=10, **more))} == {"solver"}


def test_a_solver_that_is_given_keeps_its_steps(tmp_path: Path) -> None:
    given = parse_recipe({"steps": STEPS, "solver": {"steps": 4}}, "given")
    found = search(tmp_path, min_psnr=15, recipe=given, trials=3)
    assert found.tried and all(one.stages["solver"] == {"steps": 4} for one in found.tried)


@pytest.mark.parametrize("applied", [False, True])
def test_a_stack_is_in_every_candidate_and_as_it_was_afterwards(applied: bool, tmp_path: Path) -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).quantize("int8", min_features=16).cache("svd", count=7)
    before = picture(stack, STEPS)
    if not applied:
        stack.undo()
    found = tune(stack, prompts=PROMPTS, min_psnr=15, trials=3, budget=BUDGET, compile_base=False, progress=False)
    fixed = stack.to_recipe().stages
    assert stack.applied is applied and torch.equal(picture(stack, STEPS), before)
    assert found.tried and all(one.stages.items() >= fixed.items() for one in found.tried)
    assert found.recipe is not None and found.recipe.steps == STEPS
    assert {name for one in found.tried for name in one.stages} > fixed.keys()


def test_a_recipe_and_a_stack_say_how_many_steps_the_plain_model_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, seen = tiny_pipe(), []

    def stopped(self: Tryout, samples: object, tell: object) -> None:
        seen.append(self.steps)
        raise KeyboardInterrupt

    monkeypatch.setattr(Tryout, "prepare", stopped)
    given = parse_recipe({"steps": 8, "quantize": {"scheme": "int8-weight"}}, "given")
    for model, recipe, steps in (
        (pipe, None, None),
        (pipe, given, None),
        (pipe, given, 6),
        (Stack(pipe, steps=9), None, None),
    ):
        tune(model, recipe, prompts=PROMPTS, min_psnr=15, steps=steps, progress=False)
    assert seen == [50, 8, 6, 9]


def test_an_error_of_latents_is_measured_on_latents(tmp_path: Path) -> None:
    found = search(tmp_path, max_error=0.5, trials=4)
    assert found.chosen is not None and 0 < found.chosen.figures.error <= 0.5
    assert found.chosen.figures.psnr is None


def test_a_search_that_is_stopped_keeps_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, calls = Tryout.figures, []

    def stopped(self: Tryout, *args: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Tryout, "figures", stopped)
    found = search(tmp_path, min_psnr=25)
    assert found.partial and found.chosen is None and len(found.tried) == 2
    assert verdict(found) == (
        "stopped before anything was checked for min_psnr=25; the same command goes on from 2 tried"
    )
    monkeypatch.setattr(Tryout, "figures", measure)
    again = search(tmp_path, min_psnr=25, trials=1)
    assert not again.partial and [one.stages for one in again.tried[:2]] == [one.stages for one in found.tried]


def test_one_of_several_candidates_that_fails_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Tryout.figures

    def failing(self: Tryout, stages: dict[str, object], *args: object) -> object:
        if "solver" in stages:
            raise RuntimeError("out of memory")
        return measure(self, stages, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Tryout, "figures", failing)
    found = search(tmp_path, min_psnr=25)
    assert found.refused >= 1 and found.recipe is not None and "solver" not in found.recipe.stages


def test_a_search_with_nothing_new_to_try_ends_before_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    proposed: list[object] = []

    def choose(space: Space, chooser: object) -> dict[str, object]:
        proposed.append(chooser)
        return {"cache": {"count": 4}}

    monkeypatch.setattr(Space, "choose", choose)
    found = tune(tiny_pipe(), prompts=PROMPTS, min_psnr=10, steps=STEPS, trials=400, compile_base=False)
    assert len(proposed) == 31 and len([one for one in found.tried if one.how == "searched"]) == 1


def test_too_few_prompts_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="at least 3 different prompts"):
        tune(tiny_pipe(), prompts=PROMPTS[:2], min_psnr=30, study=tmp_path / "study.db")
    assert not (tmp_path / "study.db").exists()
