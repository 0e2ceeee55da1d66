"""Whether `cache("svd", max_error=...)` keeps to what it is given, uses it, and needs no more full steps than it must.

python benchmarks/budgets.py [--model shapes-flux] [--runs 100] [--draw 41] [--seed 9000] [--out docs/benchmarks]

Random prompts, seeds, stacks (plain, W8A8, sparse 50 %) and errors from 0.01 to 0.1, each run against the same stack
uncached and against fixed schedules. Every run is kept in budgets-MODEL.json as soon as it is measured: Ctrl-C loses
one at most, the same command goes on.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any

import torch
import typer
from cachebench.record import Record
from common import show, tell_targets
from compatbench.budgets import STACKS, asked, budget_targets

from stack.core.errors import StackError
from stack.loading import load


@torch.no_grad()
def main(
    model: str = "shapes-flux",
    runs: Annotated[int, typer.Option(min=1)] = 100,
    draw: Annotated[int, typer.Option(min=0, help="of prompts, stacks and errors")] = 41,
    seed: Annotated[int, typer.Option(min=0, help="of the first run's noise; later ones count on")] = 9000,
    fresh: bool = False,
    out: Path = Path("docs/benchmarks"),
) -> None:
    """Measure, print, and keep the record."""
    try:
        record = Record.open(out / f"budgets-{model}.json", {"model": model, "draw": draw, "seed": seed}, fresh)
        record.rows = list(asked(load(model), model, runs, record.remember, draw, seed))
    except StackError as error:
        raise SystemExit(f"error: {error}") from None
    targets = budget_targets(record.rows)
    record.targets = [asdict(t) | {"met": t.met} for t in targets]
    record.save()
    by = {name: [row for row in record.rows if row["stack"] == name] for name in STACKS}
    show(f"{model}, {runs} runs", [_summary(name, rows) for name, rows in by.items() if rows])
    tell_targets(targets)


def _summary(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    used = [row["measured"] / row["asked"] for row in rows]
    return {
        "stack": name, "runs": len(rows), "kept": sum(u <= 1 for u in used) / len(rows), "median use": median(used),
        "largest use": max(used), "full": mean(row["full"] for row in rows),
        "fixed at equal error": mean(row["fixed"] for row in rows),
    }  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
