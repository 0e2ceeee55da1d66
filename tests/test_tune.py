from __future__ import annotations

from pathlib import Path

import pytest

from stack import Stack, StackError
from stack.caching.cache import Cache
from stack.calibrate.goals import Goal
from stack.recipe import load_recipe, parse_recipe, recipe_toml
from stack.tune import calibrated, held_apart, read_prompts

from .conftest import PROMPT, picture, tiny_pipe

STEPS = 14
OTHERS = ["a green circle", "a cyan star on a white background"]


def test_every_third_prompt_is_held_out() -> None:
    assert held_apart(list("abcdefg")) == (["a", "b", "d", "e", "g"], ["c", "f"])
    assert held_apart(["a", "a", "b", "c"]) == (["a", "b"], ["c"])
    with pytest.raises(StackError, match="at least 3 different prompts, 2 to search on and 1 to check, got 2"):
        held_apart(["a", "b", "a"])


def test_prompts_are_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red ring\n\n  a blue star \n")
    assert read_prompts(file) == ["a red ring", "a blue star"]
    with pytest.raises(StackError, match="cannot read prompts from"):
        read_prompts(tmp_path / "none.txt")


def test_a_calibrated_recipe_is_read_back_and_runs_its_schedule(tmp_path: Path) -> None:
    pipe = tiny_pipe()
    before = picture(pipe, STEPS)
    plain = parse_recipe({"steps": STEPS, "cache": {"method": "svd", "interval": 4}}, "mine")
    found, result = calibrated(plain, pipe, [PROMPT, *OTHERS], Goal(full_steps=5))
    assert (picture(pipe, STEPS) == before).all()
    path = tmp_path / "mine.toml"
    path.write_text(recipe_toml(found))
    read = load_recipe(str(path))
    assert read == found and read.notes["held_out"] == 1 and read.notes["calibrated_on"] == 2
    (cache,) = read.passes()
    assert isinstance(cache, Cache) and cache.full_steps == result.full_steps and len(cache.full_steps) == 5
    assert cache.policy.schedule.interval == 4 and cache.policy.calibrated_for[0] == "family=flux"
    with Stack.from_recipe(read, pipe) as stack:
        picture(stack, STEPS)
        assert [r.step for r in stack.report().steps if r.kind == "full"] == list(result.full_steps)
