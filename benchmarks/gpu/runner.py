"""Runs rows one after the other: guarded, within a budget, each written down at once."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from .journal import Journal, Line, is_measured
from .setting import Setting

FRAMES = 6  # of a traceback that an error is told with


class ContextLost(Exception):
    """The device answers nothing any more: no further row of this process can run."""


@dataclass(frozen=True)
class Row:
    """One thing to measure.

    Attributes:
        seconds: that it needs on a GPU, about; with less left it is skipped.
        measure: its figures by name.
        needs_gpu: it computes what a CPU cannot.
        late: it waits until every part has measured what tells more.
    """

    part: str
    name: str
    seconds: float
    measure: Callable[[], Line]
    needs_gpu: bool = False
    late: bool = False


@dataclass
class Runner:
    """What rows of every part have in common.

    Attributes:
        budget: seconds for all rows together, counted from `started`.
        names: wildcards of rows to run; () runs all.
        again: measure rows that are measured already.
    """

    journal: Journal
    setting: Setting
    budget: float
    names: tuple[str, ...] = ()
    again: bool = False
    started: float = field(default_factory=time.monotonic)
    written: int = 0

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget - (time.monotonic() - self.started)

    def run(self, rows: Iterable[Row]) -> None:
        """Measure what is not measured yet.

        Raises:
            ContextLost: a row's error took the device with it; the row is written.
            KeyboardInterrupt: while a row ran; it is written as interrupted.
        """
        done = {(line["part"], line["row"]) for line in self.journal.lines() if is_measured(line)}
        for row in rows:
            if self.names and not any(fnmatch(row.name, name) for name in self.names):
                continue
            if (row.part, row.name) in done and not self.again:
                print(f"{row.part} | {row.name}: measured before", flush=True)
                continue
            self._one(row)

    def _one(self, row: Row) -> None:
        wanted = self.setting.either(row.seconds, 1.0)
        if row.needs_gpu and not self.setting.on_gpu:
            return self._write(row, {"skipped": "needs a GPU"})
        if self.left < wanted:
            return self._write(row, {"skipped": f"{max(self.left, 0):.0f} s left, {wanted:.0f} s wanted"})
        started = time.monotonic()
        try:
            found = row.measure()
        except KeyboardInterrupt:
            self._write(row, {"interrupted": True})
            raise
        # A library that gives up by SystemExit must not end the other rows.
        except (Exception, SystemExit) as error:
            found = told(error)
        self._write(row, {**found, "took": time.monotonic() - started})
        if "error" in found:
            self._check_device()
        self._clean_up()

    def _write(self, row: Row, found: Line) -> None:
        line = {"part": row.part, "row": row.name, **found}
        self.journal.add(line)
        self.written += 1
        print(f"{row.part} | {row.name}: {in_words(found)}", flush=True)

    def _check_device(self) -> None:
        if not self.setting.on_gpu:
            return
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise ContextLost(str(error).splitlines()[0]) from None

    def _clean_up(self) -> None:
        # Compiled code may hold on to a model that is gone; the next row compiles from files that are kept.
        torch.compiler.reset()
        gc.collect()
        if self.setting.on_gpu:
            torch.cuda.empty_cache()


def told(error: BaseException) -> Line:
    """An exception as a row's figures: what it says and the calls that led to it, outermost first."""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    where = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
    return {"error": f"{type(error).__name__}: {str(error)[:500]}", "where": where}


def in_words(found: Line) -> str:
    """Figures on one line of a terminal."""
    return ", ".join(f"{key} {_short(value)}" for key, value in found.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:200]
