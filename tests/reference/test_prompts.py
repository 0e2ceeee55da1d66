"""`prompts` means the same everywhere: texts, the file of them, or how many captions of a reference model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest

from stack import Stack, StackError, calibrate, compare, run, tune
from stack.reference.captions import captions
from stack.reference.prompts import (
    DRAWN_WITH,
    drawn_prompts,
    read_prompts,
    searched_captions,
    searched_prompts,
    texts_from,
)
from stack.tuning.tryout import Tryout

from ..conftest import RECIPE, tiny_pipe
from ..families.saved.build import SAVED

TEXTS = ["a red ring", "a blue star", "a green circle"]


def test_prompts_are_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red ring\n\n  a blue star \n")
    assert read_prompts(file) == ["a red ring", "a blue star"]
    with pytest.raises(StackError, match="cannot read prompts from"):
        read_prompts(tmp_path / "none.txt")


def test_the_name_of_a_file_is_no_prompt(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a\nb\nc\n")
    assert texts_from(file) == ["a", "b", "c"] and texts_from([str(file)]) == [str(file)]
    with pytest.raises(StackError, match="is a file: expected its Path for its lines, or a list for this text"):
        texts_from(str(file))


def test_a_number_is_as_many_captions(pipe: Any) -> None:
    assert drawn_prompts(pipe, 3, 7) == captions(3, 7)
    assert drawn_prompts(pipe, 2, 0, "shapes-video") == captions(2, 0, "shapes-video")
    assert searched_prompts(pipe, 4) == searched_captions("shapes-flux", 4) == captions(5, DRAWN_WITH)[1:]
    assert drawn_prompts(pipe, TEXTS) == searched_prompts(pipe, TEXTS) == TEXTS
    assert drawn_prompts(pipe, "one") == ["one"]


def test_a_search_needs_texts_where_no_captions_are_known() -> None:
    real = SAVED["Flux"].make()
    assert isinstance(real, diffusers.FluxPipeline) and drawn_prompts(real, 2) == captions(2, 0)
    with pytest.raises(StackError, match="no prompts are known for FluxPipeline: expected texts, or a file of one on"):
        searched_prompts(real, 6)


@pytest.mark.parametrize("wrong", [0, -1, 1001, True, [], [1.5], {"a": 1}, None])
def test_every_function_refuses_the_same_with_one_line(pipe: Any, wrong: Any, tmp_path: Path) -> None:
    stack, said = Stack(pipe, steps=14).cache("svd", interval=4), []
    asked: list[Any] = [
        lambda: compare(stack, prompts=wrong, compile_base=False, progress=False),
        lambda: calibrate(stack, prompts=wrong, progress=False),
        lambda: tune(pipe, prompts=wrong, min_psnr=20, progress=False),
        lambda: list(run(stack, wrong, tmp_path / "out")),
    ]
    for ask in asked:
        with pytest.raises(StackError, match=r"^prompts: expected ") as caught:
            ask()
        said.append(str(caught.value))
    assert len({*said}) == 1 and not (tmp_path / "out").exists()


def test_every_function_takes_a_number(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.toml").write_text(RECIPE)
    (made,) = run(Stack(tiny_pipe(), steps=2), 1, tmp_path / "out")
    assert made.prompt == captions(1, 0)[0]
    found = compare(pipe, tmp_path / "mine.toml", prompts=2, steps=4, compile_base=False, progress=False)
    assert found.record["prompts"] == captions(2, 0)
    recipe, _ = calibrate(pipe, tmp_path / "mine.toml", prompts=3, full_steps=4, budget=5, progress=False)
    assert (recipe.notes["calibrated_on"], recipe.notes["held_out"]) == (2, 1)
    seen: list[str] = []

    def prepare(self: Tryout, samples: list[Any], tell: Any) -> None:
        seen.extend(one.prompt for one in samples)
        raise KeyboardInterrupt

    monkeypatch.setattr(Tryout, "prepare", prepare)
    assert tune(tiny_pipe(), prompts=3, min_psnr=20, steps=14, progress=False).partial
    assert seen == searched_captions("shapes-flux", 3)[:2]
