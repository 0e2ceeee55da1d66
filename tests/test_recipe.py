from __future__ import annotations

from pathlib import Path

import pytest

from stack import Stack, StackError
from stack.caching.cache import Cache
from stack.quant.quantize import Quantize
from stack.recipe import Recipe, list_recipes, load_recipe, parse_recipe, recipe_toml

from .conftest import tiny_pipe


def test_the_shipped_recipes_hold_calibrated_caches() -> None:
    recipes = {recipe.name: recipe for recipe in list_recipes()}
    assert sorted(recipes) == ["balanced", "fast", "turbo"]
    for recipe in (recipes["balanced"], recipes["fast"]):
        assert list(recipe.stages) == ["quantize", "sparse_attn", "cache"]
        assert recipe.stages["cache"]["steps"] == recipe.steps == 50
        assert recipe.stages["cache"]["full_steps"][0] == 0


def test_the_recipe_of_few_steps_holds_an_adapter() -> None:
    turbo = load_recipe("turbo")
    assert (list(turbo.stages), turbo.steps) == (["distill", "quantize"], 4)


@pytest.mark.parametrize("name", ["balanced", "fast", "turbo"])
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
    with pytest.raises(StackError, match="unknown recipe 'blanced': expected one of balanced, fast, turbo"):
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
