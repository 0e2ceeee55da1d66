"""What every benchmark shares: interleaved timing, targets, and the record it writes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from stack.comparison.console import console
from stack.comparison.record import machine
from stack.core.versions import versions

WIDE = 200  # columns of a table that goes to a file: no figure is cut


@dataclass(frozen=True)
class Target:
    """One figure computed from a run's own rows, and what it should be.

    Attributes:
        op: ">=" or "<=".
    """

    name: str
    value: float
    target: float
    op: str = ">="

    @property
    def met(self) -> bool:
        return self.value >= self.target if self.op == ">=" else self.value <= self.target

    @property
    def missed_by(self) -> float:
        """How far the value is on the wrong side; 0 where it is met."""
        return 0.0 if self.met else abs(self.value - self.target)


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each run, all of them in turn, `rounds` times after the warm-up.

    Args:
        clock: `time.process_time` for the time of this process alone, where others use the machine.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warm_up + rounds):
        for name, run in runs.items():
            started = clock()
            run()
            if turn >= warm_up:
                seconds[name].append(clock() - started)
    return {name: median(values) for name, values in seconds.items()}


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers of at least 1, as an option gives them: "12,10,9".

    Raises:
        BadParameter: it holds anything else; a command line shows it without a traceback.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise typer.BadParameter(
            f"expected whole numbers of at least 1 with commas between, such as 12,10,9; got {text!r}"
        )
    return tuple(map(int, parts))


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of figures; columns are the first row's keys."""
    table = Table(title=title, title_justify="left")
    for key in rows[0]:
        table.add_column(key, justify="left" if isinstance(rows[0][key], str) else "right")
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else "-" if v is None else str(v) for v in row.values()))
    console(piped=WIDE).print(table)


def tell_targets(targets: Sequence[Target]) -> None:
    """Print each target as met or missed."""
    for t in targets:
        mark, by = ("met   ", "") if t.met else ("MISSED", f", missed by {t.missed_by:.3g}")
        console(piped=WIDE).print(f"{mark} {t.name}: {t.value:.3g} (target {t.op} {t.target:g}{by})", highlight=False)


def finish(rows: Sequence[Mapping[str, Any]], targets: Sequence[Target], device: str, out: Path | None) -> None:
    """Print the targets, and write the record if asked to."""
    tell_targets(targets)
    record = {
        "machine": machine(device),
        "versions": versions(),
        "rows": list(rows),
        "targets": [asdict(t) | {"met": t.met} for t in targets],
    }
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=2) + "\n")
        Console().print(f"written: {out}")
