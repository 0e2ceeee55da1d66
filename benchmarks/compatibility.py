"""Caches joined with everything else: naively and through the compatibility layer.

python benchmarks/compatibility.py [--model shapes-flux] [--rows 'W8A8*'] [--prompts 4] [--out docs/benchmarks]

Every row is kept in compatibility-MODEL.json as soon as it is measured: Ctrl-C loses one row at most, the same command
goes on. Losses are mean squared errors of finished pictures against the same variant uncached.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from cachebench.assemble import matcher
from cachebench.record import Record
from common import show, tell_targets
from compatbench.budgets import asked, budget_targets
from compatbench.cost import cost_targets, layer_cost
from compatbench.matrix import SEED, Matrix, calibrate
from compatbench.page import page
from compatbench.sheet import sheet
from compatbench.targets import matrix_targets, ratios
from compatbench.whole import whole, whole_targets

from stack.core.errors import StackError
from stack.loading import load


@torch.no_grad()
def main(
    model: str = "shapes-flux",
    rows: Annotated[list[str] | None, typer.Option(help="variants, with wildcards")] = None,
    called: Annotated[bool, typer.Option(help="only the defaults, as one calls them")] = False,
    prompts: Annotated[int, typer.Option(min=2)] = 4,
    budget: Annotated[float, typer.Option(help="seconds of the calibration of SVD-Cache")] = 60.0,
    runs: Annotated[int, typer.Option(help="random runs with max_error; 0 for none")] = 100,
    rounds: Annotated[int, typer.Option(help="of the stack of everything and its parts; 0 for none")] = 5,
    fresh: bool = False,
    out: Path = Path("docs/benchmarks"),
) -> None:
    """Measure, print, and keep the record."""
    try:
        protocol = {"model": model, "prompts": prompts, "calibration_seconds": budget}
        record = Record.open(out / f"compatibility-{model}.json", protocol, fresh)
        pipe = load(model)
        options = record.remember("svd calibrated", lambda: calibrate(pipe, model, budget)) if not called else {}
        calibrated = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
        matrix = Matrix(model, pipe, record, prompts, calibrated)
        record.rows = list(matrix.rows(matcher(rows or ()), called))
        targets = matrix_targets(record.rows)
        if rounds:
            cost = record.remember("layer", lambda: layer_cost(pipe, matrix.texts[0], SEED))
            parts = record.remember(
                f"whole, {rounds} rounds", lambda: whole(pipe, matrix.texts[:2], calibrated, rounds, SEED)
            )
            show(f"{model}: a stack of everything", parts)
            targets += [*whole_targets(parts), *cost_targets(cost)]
        if runs and (lines := list(asked(pipe, model, runs, record.remember))):
            targets += budget_targets(lines)
        everything = not (rows or called)
        if everything:
            sheet(matrix).save(out / f"compatibility-{model}.png")
        record.targets = [asdict(t) | {"met": t.met} for t in targets]
        record.save()
        drawn = f"compatibility-{model}.png" if everything else ""
        text = page(json.loads(record.path.read_text()), matrix.alone() if everything else {}, drawn)
        (out / f"compatibility-{model}.md").write_text(text)
        if lines := ratios(record.rows):
            show(f"{model}: caches on other models, {prompts} prompts", lines)
        tell_targets(targets)
    except StackError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    typer.run(main)
