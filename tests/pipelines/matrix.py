"""The matrix: pipelines x the schedulers they accept x {no pass, every step full, svd, int8}, each cell a verdict."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any

import torch

from stack import Stack, StackError
from stack.caching.cache import Cache
from stack.caching.noise_schedule import Levels

from .build import PIPELINES, Tiny
from .schedulers import choices

COLUMNS = ("no pass", "every step full", "svd", "int8")
SAME, WRONG = "same", "WRONG"


@dataclass
class Row:
    """One scheduler on one pipeline: a verdict per column, or why diffusers itself does not run it."""

    pipeline: str
    scheduler: str
    calls: int = 0
    cells: dict[str, str] = field(default_factory=dict)
    not_accepted: str = ""


def schedulers_of(pipeline: str) -> dict[str, Callable[[], Any]]:
    """What makes each scheduler that may drive this pipeline."""
    return choices(flow=not pipeline.startswith("DiT"))


def row_of(tiny: Tiny, pipeline: str, scheduler: str, columns: tuple[str, ...] = COLUMNS) -> Row:
    """Every verdict on a pipeline, which is left as it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _row_of(tiny, pipeline, scheduler, columns)


def _row_of(tiny: Tiny, pipeline: str, scheduler: str, columns: tuple[str, ...]) -> Row:
    row = Row(pipeline, scheduler)
    try:
        tiny.pipe.scheduler = schedulers_of(pipeline)[scheduler]()
        plain = tiny.call()
        again = tiny.call()
    except Exception as error:  # whatever diffusers raises: the pipeline does not take this scheduler
        row.not_accepted = _in_short(error)
        return row
    if not (plain.isfinite().all() and same(plain, again)):
        row.not_accepted = "two calls give different or non-finite outputs"
        return row
    row.calls = tiny.seen["denoiser"]
    row.cells = {column: _verdict(tiny, column, plain, row.calls) for column in columns}
    return row


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def _verdict(tiny: Tiny, column: str, plain: torch.Tensor, calls: int) -> str:
    stack, wrong = Stack(tiny.pipe), Complaints()
    try:
        told = _CELLS[column](tiny, stack, plain, calls, wrong)
    except StackError as error:
        told = f"refused: {_named(str(error))}"
    except Exception as error:  # a crash is a verdict too
        told = ""
        wrong.append(_in_short(error))
    stack.undo()
    if not same(tiny.call(), plain):
        wrong.append("undo() does not restore the outputs")
    return f"{WRONG}: {'; '.join(wrong)}" if wrong else told


class Complaints(list[str]):
    """What is wrong with a cell."""

    def unless(self, fine: bool, text: str) -> None:
        """A complaint, once."""
        if not fine and text not in self:
            self.append(text)

    def of_report(self, tiny: Tiny, stack: Stack, calls: int) -> None:
        """The last call of the pipeline is on one page: a record for every call of the denoiser."""
        ran, records = tiny.seen["denoiser"], len(stack.report().steps)
        self.unless(ran == calls, f"the denoiser ran {ran} times, {calls} without a stack")
        self.unless(records == calls, f"{records} of {calls} calls in the report")


def _nothing(tiny: Tiny, stack: Stack, plain: torch.Tensor, calls: int, wrong: Complaints) -> str:
    """Called through the stack and past it, the outputs are those of the bare pipeline."""
    for run in (stack, tiny.pipe):
        wrong.unless(same(tiny.call(run), plain), "other outputs than the bare pipeline")
        wrong.unless(tiny.seen["middle"] == calls, f"{tiny.seen['middle']} of {calls} calls in full")
        wrong.of_report(tiny, stack, calls)
    return SAME


def _every_step_full(tiny: Tiny, stack: Stack, plain: torch.Tensor, calls: int, wrong: Complaints) -> str:
    return _nothing(tiny, stack.cache("svd", interval=1), plain, calls, wrong)


def _svd(tiny: Tiny, stack: Stack, plain: torch.Tensor, calls: int, wrong: Complaints) -> str:
    """As many full steps as the plan for this number of steps has, in every branch, on every call; or more, and why."""
    first = tiny.call(stack.cache("svd"))
    levels = stack.clock.sigma_schedule.levels
    planned = _planned(tiny, calls // tiny.branches, levels) * tiny.branches
    full, report = tiny.seen["middle"], stack.report()
    wrong.of_report(tiny, stack, calls)
    reasons = [text for text in report.warnings if "(rule sampler-not-plain)" not in text]  # that one costs no step
    if full > planned and reasons:
        told = f"full {full} of {calls}, planned {planned}, said: {_named(reasons[0])}"
    else:
        told = f"full {full} of {calls}"
        wrong.unless(full == planned, f"full {full} of {calls}, planned {planned}")
    wrong.unless(report.full_steps == full, f"full {full} of {calls}, the report says {report.full_steps}")
    wrong.unless(same(tiny.call(stack), first), "a second call differs")
    wrong.unless(same(tiny.call(), first), "a call of the pipeline itself differs")
    wrong.unless(same(first, plain) == (full == calls), "bit-identical though not every call was full, or the reverse")
    return told


def _int8(tiny: Tiny, stack: Stack, plain: torch.Tensor, calls: int, wrong: Complaints) -> str:
    """The same on every call, through the stack and past it, and not what the bare pipeline makes."""
    first = tiny.call(stack.quantize("int8", min_features=32))
    wrong.of_report(tiny, stack, calls)
    wrong.unless(not same(first, plain), "nothing was rounded")
    for run in (stack, tiny.pipe):
        wrong.unless(same(tiny.call(run), first), "a second call differs")
    return SAME


_CELLS: dict[str, Callable[[Tiny, Stack, torch.Tensor, int, Complaints], str]] = dict(
    zip(COLUMNS, (_nothing, _every_step_full, _svd, _int8), strict=True)
)


def _planned(tiny: Tiny, steps: int, levels: Levels) -> int:
    """Full steps that the plan for this number of steps has at these noise levels; all where it drops the cache."""
    passes = Stack(tiny.pipe, steps=steps).cache("svd").plan.passes()
    cache = next((each for each in passes if isinstance(each, Cache)), None)
    return steps if cache is None else len(cache.policy.schedule_for(steps, (), levels).full_steps(steps))


def _in_short(error: Exception) -> str:
    """The kind of an error and its first words."""
    words = " ".join(str(error).split()).replace("|", "/")
    # "The current scheduler class <class '...'>'s `set_timesteps` does not support custom ... schedules. Please ..."
    words = words.split(">'s ", 1)[-1].split(". ")[0]
    return shorten(f"{type(error).__name__}: {words}", 90, placeholder=" ...")


def _named(text: str) -> str:
    """The rule that a message names, or its first words."""
    rule = re.search(r"\(rule ([\w-]+)\)", text)
    return rule[1] if rule else shorten(text.replace("|", "/"), 60, placeholder=" ...")


def pipeline_rows(pipeline: str, columns: tuple[str, ...] = COLUMNS) -> list[Row]:
    """A row for every scheduler of diffusers."""
    tiny = PIPELINES[pipeline]()
    return [row_of(tiny, pipeline, scheduler, columns) for scheduler in schedulers_of(pipeline)]
