"""Caches joined with everything else: naively and through the compatibility layer.

python benchmarks/compatibility.py [--model shapes-flux] [--rows 'W8A8*'] [--prompts 8] [--out docs/benchmarks]

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
from compatbench.cost import cost_targets, layer_cost
from compatbench.matrix import SEED, Matrix
from compatbench.page import page
from compatbench.targets import matrix_targets, ratios

from stack.core.errors import StackError
from stack.loading import load


@torch.no_grad()
def main(
    model: str = "shapes-flux",
    rows: Annotated[list[str] | None, typer.Option(help="variants, with wildcards")] = None,
    called: Annotated[bool, typer.Option(help="only the defaults, as one calls them")] = False,
    prompts: Annotated[int, typer.Option(min=2)] = 8,
    fresh: bool = False,
    out: Path = Path("docs/benchmarks"),
) -> None:
    """Measure, print, and keep the record."""
    try:
        record = Record.open(out / f"compatibility-{model}.json", {"model": model, "prompts": prompts}, fresh)
        pipe = load(model)
        matrix = Matrix(model, pipe, record, prompts)
        record.rows = list(matrix.rows(matcher(rows or ()), called))
        targets = matrix_targets(record.rows)
        everything = not (rows or called)
        if everything:
            targets += cost_targets(record.remember("layer", lambda: layer_cost(pipe, matrix.texts[0], SEED)))
        record.targets = [asdict(t) | {"met": t.met} for t in targets]
        record.save()
        text = page(json.loads(record.path.read_text()), matrix.alone() if everything else {})
        (out / f"compatibility-{model}.md").write_text(text)
        if lines := ratios(record.rows):
            show(f"{model}: caches on other models, {prompts} prompts", lines)
        tell_targets(targets)
    except StackError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    typer.run(main)
