"""What happened in the last pipeline call: what ran on each step, the cache's error, and the time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import torch

from ..core.files import json_text
from ..core.readback import Stopwatch
from .final_error import final_error_words, summed_error
from .step import ALL, CACHED, FULL, PARTIAL, Computed, StepContext

CPU = torch.device("cpu")


def steps_worth(computed: Sequence[Computed]) -> float:
    """Full steps that would have been this much work in the blocks: every count of steps that may be partial."""
    return math.fsum(step.linears for step in computed)


@dataclass
class StepRecord:
    """One denoiser call.

    Attributes:
        kind: "full", "cached" (no block ran) or "partial".
        computed: how much of a full call's work it did.
        error: relative error of the cache's prediction, known on full steps that end a run of cached ones.
        seconds: time of the call on its device, by the device's own events on an accelerator.
        host_seconds: time that the host spent in it: the same on a CPU, launching the work on an accelerator.
    """

    step: int
    sigma: float
    branch: str
    kind: str
    error: float | None
    seconds: float
    host_seconds: float
    computed: Computed = ALL


@dataclass
class Report:
    """The last pipeline call of a stack.

    Attributes:
        passes: figures of each pass, by stage.
        warnings: what did not work as planned, such as "0 of 8 steps cached".
    """

    steps: list[StepRecord]
    cache_bytes: int
    passes: dict[str, dict[str, Any]]
    summaries: dict[str, str]
    warnings: list[str]

    @property
    def full_steps(self) -> int:
        """Calls that ran every block."""
        return sum(record.kind == FULL for record in self.steps)

    @property
    def leading(self) -> list[StepRecord]:
        """One call of every step: of its guidance branches, and of two denoisers that it calls, the first."""
        first: dict[int, str] = {}
        for record in self.steps:
            first.setdefault(record.step, record.branch)
        return [record for record in self.steps if record.branch == first[record.step]]

    @property
    def full_steps_each(self) -> float:
        """Full steps of one guidance branch, on average over all."""
        return self.full_steps * len(self.leading) / max(1, len(self.steps))

    @property
    def branches(self) -> int:
        """Guidance branches that are calls of their own."""
        return len({record.branch for record in self.steps})

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values: `step` 0 is the first, seconds are of the device, errors are relative."""
        return {**asdict(self), "full_steps": self.full_steps, "branches": self.branches}

    def to_json(self) -> str:
        """`as_dict` as strict JSON: a figure that is not finite is null."""
        return json_text(self.as_dict())

    def __str__(self) -> str:
        if not self.steps:
            return "\n".join(["nothing has run yet", *(f"warning: {text}" for text in self.warnings)])
        marks = "".join({FULL: "F", CACHED: ".", PARTIAL: "p"}[record.kind] for record in self.steps)
        errors = [record.error for record in self.steps if record.error is not None]
        worth = steps_worth([record.computed for record in self.steps])
        partial = f", the work of {worth:.3g} full ones" if PARTIAL[0] in marks else ""
        lines = [
            f"{len(self.steps)} denoiser calls, {self.full_steps} full: {marks}{partial}",
            f"denoiser {sum(r.seconds for r in self.steps):.2f} s, cache state {self.cache_bytes / 1e6:.1f} MB",
        ]
        if errors:
            mean = sum(errors) / len(errors)
            lines.append(f"prediction error, measured at full steps: mean {mean:.2%}, worst {max(errors):.2%}")
        if final := final_error_words(summed_error(self.steps, FULL), self.passes.get("cache", {})):
            lines.append(final)
        lines += [f"{stage}: {text}" for stage, text in self.summaries.items()]
        lines += [f"warning: {text}" for text in self.warnings]
        return "\n".join(lines)


def unchanging_words(steps: Sequence[StepRecord]) -> str:
    """What a run of forecasts that were all exact, bit for bit, says of the cache; "" for any other run."""
    errors = [record.error for record in steps if record.error is not None]
    if len(errors) < 2 or any(errors) or not any(record.kind == CACHED for record in steps):
        return ""
    return (
        f"all {len(errors)} measured forecasts were exact: what the cache predicts does not change from step to step, "
        "so either the model does not read its latent, or the cache is in the wrong place"
    )


@dataclass
class _Entry:
    context: StepContext
    started: float
    watch: Stopwatch | None  # on an accelerator
    host_seconds: float = 0.0
    error: torch.Tensor | None = None

    @property
    def kind(self) -> str:
        outcome = self.context.outcome
        return PARTIAL if 0 < outcome.computed.linears < 1 else outcome.kind

    @property
    def seconds(self) -> float:
        return self.host_seconds if self.watch is None else self.watch.seconds


@dataclass
class Journal:
    """Collects the steps of the current pipeline call. Errors and times are read when the report is asked for."""

    entries: list[_Entry] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def begin(self, context: StepContext, device: torch.device = CPU) -> None:
        """A call begins on this device; a new pipeline call starts a new page."""
        if self.entries and self.entries[-1].context.page != context.page:
            self.entries, self.warnings = [], []
        watch = None if device.type == "cpu" else Stopwatch(device)
        self.entries.append(_Entry(context, perf_counter(), watch))

    def measure(self, error: torch.Tensor) -> None:
        """How far a prediction was off that the current call made unnecessary."""
        self.entries[-1].error = error

    def warn(self, text: str) -> None:
        """Say something once per request."""
        if text not in self.warnings:
            self.warnings.append(text)

    def end(self) -> None:
        """The current call is over."""
        entry = self.entries[-1]
        entry.host_seconds = perf_counter() - entry.started
        if entry.watch is not None:
            entry.watch.stop()

    def records(self) -> list[StepRecord]:
        """The request so far."""
        return [
            StepRecord(
                step=e.context.at,
                sigma=e.context.sigma,
                branch=e.context.branch,
                kind=e.kind,
                error=None if e.error is None else float(e.error),
                seconds=e.seconds,
                host_seconds=e.host_seconds,
                computed=e.context.outcome.computed,
            )
            for e in self.entries
        ]
