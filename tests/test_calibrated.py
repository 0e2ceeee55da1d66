from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pytest import MonkeyPatch

from stack import Stack, StackError
from stack.attention.sparse_attn import SparseAttention
from stack.caching.cache import Cache
from stack.calibrated.calibrate import calibrate, held_apart
from stack.calibration.calibration import Calibration
from stack.core.passes import Pass
from stack.recipe import load_recipe, parse_recipe, recipe_toml

from .conftest import PROMPT, picture, tiny_pipe

STEPS = 14
OTHERS = ["a green circle", "a cyan star on a white background"]


def test_every_third_prompt_is_held_out() -> None:
    assert held_apart(list("abcdefg")) == (["a", "b", "d", "e", "g"], ["c", "f"])
    assert held_apart(["a", "a", "b", "c"]) == (["a", "b"], ["c"])
    with pytest.raises(StackError, match="at least 3 different prompts, 2 to search on and 1 to check, got 2"):
        held_apart(["a", "b", "a"])


def test_a_calibrated_recipe_is_read_back_and_runs_its_schedule(tmp_path: Path) -> None:
    pipe = tiny_pipe()
    before = picture(pipe, STEPS)
    plain = parse_recipe({"steps": STEPS, "cache": {"method": "svd", "interval": 4}}, "mine")
    found, result = calibrate(pipe, plain, prompts=[PROMPT, *OTHERS], full_steps=5)
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


def test_the_shares_of_a_budget_are_fitted_first_and_written_too(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    met: list[Pass] = []

    def search(stack: Stack, *_: Any, **__: Any) -> Calibration:
        met.extend(stack.passes)
        return Calibration(Cache("svd", full_steps=(0, 2, 4), steps=6), 6, 3, 40.0, 40.0, 30.0, 1, 1.0)

    monkeypatch.setattr(Stack, "calibrate", search)
    sparse = {"max_error": 0.3, "block": 64, "even_if_slower": True}
    plain = parse_recipe({"steps": 6, "sparse_attn": sparse, "cache": {"method": "svd", "interval": 4}}, "mine")
    found, _ = calibrate(tiny_pipe(36), plain, prompts=[PROMPT, *OTHERS], full_steps=3, progress=False)
    (tmp_path / "mine.toml").write_text(recipe_toml(found))
    read = load_recipe(str(tmp_path / "mine.toml"))
    assert read.stages == found.stages
    attention = read.passes(["sparse_attn"])[0]
    assert isinstance(attention, SparseAttention) and attention in met and attention.max_error == 0.3
    assert list(attention.table) == ["single_transformer_blocks.0.attn", "transformer_blocks.0.attn"]
    assert 0 < min(share for shares in attention.table.values() for share in shares) < 1
