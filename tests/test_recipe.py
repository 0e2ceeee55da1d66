from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stack import Stack, StackError
from stack.caching.cache import Cache
from stack.quant.quantize import Quantize
from stack.recipe import Recipe, list_recipes, load_recipe, parse_recipe, recipe_toml
from stack.reference.load import MODELS

from .conftest import tiny_pipe


def test_the_shipped_recipes_hold_a_calibrated_cache_one_that_needs_none_and_a_solver() -> None:
    recipes = {recipe.name: recipe for recipe in list_recipes()}
    shipped = {name: list(recipe.stages) for name, recipe in recipes.items() if recipe.model in MODELS}
    assert shipped == {
        "balanced": ["quantize", "sparse_attn", "cache"],
        "balanced-128": ["quantize", "dense_attn", "cache"],
        "fast": ["quantize", "solver", "dense_attn"],
        "fast-128": ["quantize", "solver", "sparse_attn"],
        "turbo": ["distill", "quantize", "cache"],
    }
    calibrated = recipes["balanced"].stages["cache"]
    assert calibrated["steps"] == 50 and calibrated["full_steps"][0] == 0
    assert recipes["balanced-128"].stages["cache"] == {"method": "predictor-corrector", "count": 6}
    solver = recipes["fast"].stages["solver"]
    assert (solver["places"], solver["of"]) == ([0, 23, 33, 43, 48], 50)
    assert [len(row) for row in solver["corrections"]] == [2, 3, 4, 4, 4]
    assert recipes["fast-128"].stages["solver"] == {"places": [0, 25, 37, 45, 49], "of": 50}


def test_the_recipe_of_few_steps_holds_an_adapter() -> None:
    turbo = load_recipe("turbo")
    assert (list(turbo.stages), turbo.steps) == (["distill", "quantize", "cache"], 4)


@pytest.mark.parametrize("name", ["balanced", "fast", "turbo", "flux-dev", "qwen-image-lightning-8"])
def test_recipes_survive_being_written_and_read(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    (tmp_path / f"{name}.toml").write_text(recipe_toml(recipe))
    assert load_recipe(str(tmp_path / f"{name}.toml")) == recipe


def test_a_recipe_builds_its_stack_or_a_part_of_it() -> None:
    recipe, pipe = load_recipe("balanced"), tiny_pipe()
    assert [p.stage for p in Stack.from_recipe(recipe, pipe).passes] == ["quantize", "sparse_attn", "cache"]
    assert [p.stage for p in Stack.from_recipe(recipe, pipe, stages=["cache", "quantize"]).passes] == [
        "quantize",
        "cache",
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"stages": ["cach"]}, "unknown stage of recipe balanced 'cach': .* did you mean 'cache'"),
        ({"stages": "cache"}, "stages: expected a list, each a text, got 'cache'"),
        ({"steps": 0}, "steps: expected a whole number of at least 1"),
    ],
)
def test_a_part_that_a_recipe_does_not_have_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(StackError, match=told):
        Stack.from_recipe("balanced", tiny_pipe(), **options)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"sparse_attn": {"keep": 0}}, "^recipe x: sparse_attn: keep must be"),
        ({"quantise": {}}, "unknown stage in recipe x 'quantise'"),
        ({"cache": {"methd": "svd"}}, r"unknown option of \[cache\] in recipe x 'methd'"),
        ({"cach": 3}, "unknown entry in recipe x 'cach'"),
        ({"quantize": {"scheme": "int3"}}, "int3"),
    ],
)
def test_mistakes_are_named_with_the_recipe(data: dict[str, object], words: str) -> None:
    with pytest.raises(StackError, match=words):
        parse_recipe(data, "x")


def test_unknown_recipes_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="unknown recipe 'blanced': expected one of balanced, balanced-128, chroma"):
        load_recipe("blanced")
    (tmp_path / "bad.toml").write_text("steps = ")
    with pytest.raises(StackError, match="not valid TOML"):
        load_recipe(str(tmp_path / "bad.toml"))


def test_a_mixed_plan_survives_the_file(tmp_path: Path) -> None:
    plan = {"transformer_blocks.0.attn.to_q": "nf4", "transformer_blocks.0.ff.net.2": "keep"}
    wanted = Quantize("int8", layers=plan, skip=("*.to_k",), ends="int8-weight", share=0.2)
    recipe = Recipe("mixed", "", "shapes-flux", 50, {"quantize": wanted.options()})
    (tmp_path / "mixed.toml").write_text(recipe_toml(recipe))
    (got,) = load_recipe(str(tmp_path / "mixed.toml")).passes()
    assert got == wanted and hash(got) == hash(wanted)
    assert isinstance(got, Quantize) and got.plan == plan
    assert Cache("svd", interval=3).options() == {"method": "svd", "interval": 3}


WRONG = {
    '[cache]\nfull_steps = [0, "a"]': "cache.full_steps[1]: expected a whole number",
    "[cache]\nfull_steps = [0, 2.5, 5]": "cache.full_steps[1]: expected a whole number",
    "[cache]\nbases = 3": "cache.bases: expected",
    '[cache]\nmethod = "fastcache"\nmaps = 3': "cache.maps: expected",
    "[cache]\ninterval = 2.5": "cache.interval: expected a whole number",
    "[cache]\norder = 1.5": "cache.order: expected a whole number",
    '[cache]\ncalibrated_for = "x"': "cache.calibrated_for: expected a list",
    '[cache]\ncorrected = "yes"': "cache.corrected: expected true or false, got 'yes'",
    "[cache]\ngains = [nan, 1.0]": "cache.gains[0]: expected a finite number",
    "[cache]\nmax_error = inf": "cache.max_error: expected a finite number",
    '[quantize]\nmin_features = "a"': "quantize.min_features: expected a whole number of at least 0, got 'a'",
    '[quantize]\nrounded = "x"': "quantize.rounded: expected a FeedbackRounding, got 'x'",
    '[distill]\nadapter = "shapes-flux-4"\nsigmas = 3': "distill.sigmas: expected a list, each a finite number, got 3",
    '[distill]\nadapter = "shapes-flux-4"\nmerge = 3': "distill.merge: expected true or false, got 3",
    "[distill]\nsteps = 4": "distill: expected adapter, got none",
    '[distill]\nadapter = "../x"': "distill.adapter: expected a file of its own folder, got '../x'",
    '[cache]\nmaps = "../../etc/x"': "cache.maps: expected a file of its own folder, got '../../etc/x'",
    '[cache]\nbases = "/etc/x"': "cache.bases: expected a file of its own folder, got '/etc/x'",
    "[[cache]]\ninterval = 2": "cache: expected a table",
    "cache = 3": "cache: expected a table, got 3",
    "notes = 3": "notes: expected a table, got 3",
    "steps = true": "steps: expected a whole number of at least 1 and at most 10000, got True",
    "steps = 10001": "steps: expected a whole number of at least 1 and at most 10000, got 10001",
    "steps = 0": "steps: expected a whole number of at least 1 and at most 10000, got 0",
    "steps = 2.0": "steps: expected a whole number of at least 1 and at most 10000, got 2.0",
    "name = 3": "name: expected a text, got 3",
    "stepps = 3": "did you mean 'steps'?",
    "[cach]\ninterval = 2": "did you mean 'cache'?",
    "[cache]\nintervall = 2": "did you mean 'interval'?",
}


@pytest.mark.parametrize(("text", "told"), WRONG.items(), ids=WRONG.keys())
def test_a_wrong_value_is_one_line_with_file_key_and_what_came(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(StackError) as error:
        load_recipe(str(path))
    line = str(error.value)
    assert str(path) in line and told in line and line.isprintable()


def test_files_beside_a_recipe_and_below_it_are_found(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("x.safetensors", "below/x.safetensors"):
        (tmp_path / name).write_bytes(b"")
        (tmp_path / "x.toml").write_text(f'[distill]\nadapter = "{name}"\n')
        (found,) = load_recipe(str(tmp_path / "x.toml")).passes()
        assert found.options() == {"adapter": str(tmp_path / name)}
