"""The page of pipelines and schedulers is what the code gives, and nothing on it is wrong."""

from __future__ import annotations

import random
from functools import cache

import pytest
from diffusers.utils import logging

from .build import PIPELINES, Tiny
from .matrix import WRONG, row_of, schedulers_of
from .page import PAGE, line, setting
from .schedulers import exported

SAMPLE = 6


def tables() -> dict[str, dict[str, str]]:
    """The page's lines, by pipeline and scheduler."""
    found: dict[str, dict[str, str]] = {}
    for text in PAGE.read_text().splitlines():
        if text.startswith("## "):
            lines = found.setdefault(text.removeprefix("## "), {})
        elif found and text.startswith("| "):
            lines[text.split(" | ")[0].removeprefix("| ")] = text
    return found


def accepted(pipeline: str) -> list[str]:
    """The schedulers that have a line in a pipeline's table."""
    return [name for name in schedulers_of(pipeline) if setting(name) in tables()[pipeline]]


@cache
def tiny(pipeline: str) -> Tiny:
    logging.set_verbosity_error()
    return PIPELINES[pipeline]()


def test_nothing_on_the_page_is_wrong() -> None:
    wrong = [text for lines in tables().values() for text in lines.values() if f"{WRONG}:" in text]
    assert not wrong, f"{len(wrong)} lines: {wrong[0]}"


def test_every_scheduler_of_diffusers_is_in_a_table_or_listed_with_its_reason() -> None:
    parts = PAGE.read_text().split("\n## ")[1:]
    assert [part.splitlines()[0] for part in parts] == list(PIPELINES)
    for part in parts:
        assert [name for name in exported() if name.removesuffix("Scheduler") not in part] == []


@pytest.mark.parametrize("pipeline", ["FluxPipeline", "DiTPipeline"])
def test_svd_on_every_scheduler(pipeline: str) -> None:
    lines, seen = tables()[pipeline], {}
    for scheduler in accepted(pipeline):
        cell = row_of(tiny(pipeline), pipeline, scheduler, ("svd",)).cells["svd"]
        seen[scheduler] = cell, lines[setting(scheduler)].split(" | ")[4]
    assert not {name: cells for name, cells in seen.items() if cells[0] != cells[1] or cells[0].startswith(WRONG)}


@pytest.mark.parametrize("pipeline", random.Random(19).sample([*PIPELINES], SAMPLE))
def test_a_sample_of_lines_is_what_the_code_gives(pipeline: str) -> None:
    scheduler = random.Random(pipeline).choice(accepted(pipeline))
    assert line(row_of(tiny(pipeline), pipeline, scheduler)) == tables()[pipeline][setting(scheduler)]


def test_the_rest_is_refused_by_diffusers_itself() -> None:
    for pipeline in ("FluxPipeline", "HunyuanVideoPipeline"):
        others = [name for name in schedulers_of(pipeline) if name not in accepted(pipeline)]
        for scheduler in random.Random(3).sample(others, 5):
            row = row_of(tiny(pipeline), pipeline, scheduler)
            assert row.not_accepted and row.not_accepted in PAGE.read_text()
