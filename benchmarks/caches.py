"""Every cache preset, other people's caches and both controls on one reference model.

python benchmarks/caches.py --model shapes-flux                            into docs/benchmarks/caches-shapes-flux.*
python benchmarks/caches.py --model shapes-dit --rows 'svd*' --rows 'first-block*'    merged into it
python benchmarks/caches.py --steps 14 --counts 5,4 --prompts 2 --trials 3 --rows 'svd*' --out /tmp/x     a first look

Everything runs eager and unquantized, so that rows differ in their cache alone. First whatever rows need is calibrated
and searched; then rivals and gates are screened over their settings, on one picture each; then every row takes its
turn in each round. Ctrl-C keeps what is measured, and the same command goes on; --fresh begins anew. All of it takes
hours on two cores; how many is said before it starts.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from cachebench.assemble import assemble, matcher
from cachebench.bench import Bench
from cachebench.measuring import Measured, count, in_turn, line_of
from cachebench.page import page
from cachebench.plot import draw
from cachebench.quality import judge_of
from cachebench.record import Record, finished, merge
from cachebench.rows import Row, fewer
from cachebench.targets import calibrated_targets, over_controls, published_targets
from common import numbers, show, tell_targets
from rich.console import Console
from rich.progress import Progress

from stack.core.errors import StackError

SHOWN = ("row", "seconds", "speedup", "work", "full", "psnr", "ssim", "accuracy", "MB", "overhead_ms", "over controls")


def measure(bench: Bench, record: Record, rows: list[Row]) -> None:
    """Count every row that is not finished, then time them in turn; the base takes part in every round."""
    rows = [row for row in rows if not finished(record.rows, row.name, row.settings, bench.rounds)]
    if not rows:
        return
    base = count(fewer(bench, bench.steps, "base"), bench, bench.texts[0], bench.seed)
    judge = judge_of(bench)
    with Progress() as bar:
        task = bar.add_task("rows", total=(len(rows) + 1) * bench.rounds + len(rows))

        def tell(text: str) -> None:
            bar.update(task, advance=1, description=text)

        running: list[Measured] = []
        for row in rows:
            tell(f"{row.name}: warm-up, counted")
            found = count(row, bench, bench.texts[0], bench.seed)
            if found.refusal:
                record.rows = merge(record.rows, [line_of(found, base, bench, judge)])
            else:
                running.append(found)

        def keep() -> None:
            record.rows = merge(record.rows, [line_of(each, base, bench, judge) for each in [base, *running]])
            record.save(bench.pipe.device.type)

        in_turn(
            [base, *running],
            bench,
            bench.rounds,
            lambda m, n: tell(f"{m.row.name}, round {n + 1} of {bench.rounds}"),
            keep,
        )


def conclude(bench: Bench, record: Record, folder: Path) -> None:
    """Targets, table, plot and page of whatever is measured so far."""
    record.rows = over_controls(record.rows)
    targets = calibrated_targets(record.rows, bench.counts, bench.steps) + published_targets(record.rows, bench.steps)
    record.targets = [asdict(t) | {"met": t.met} for t in targets]
    record.save(bench.pipe.device.type)
    shown = [{key: line.get(key) for key in SHOWN} for line in record.rows if not line.get("note")]
    if shown:
        show(f"{bench.model}, {len(bench.texts)} prompts, {bench.steps} steps", shown)
    for line in record.rows:
        if line.get("note"):
            Console().print(f"{line['row']}: {line['note']}", highlight=False)
    tell_targets(targets)
    stem = folder / f"caches-{bench.model}"
    draw(record.rows, f"{bench.model}, {bench.steps} steps, {len(bench.texts)} prompts", stem.with_suffix(".png"))
    distances = folder / f"fid-{bench.model}.json"
    fid = json.loads(distances.read_text()) if distances.is_file() else None
    stem.with_suffix(".md").write_text(page(json.loads(stem.with_suffix(".json").read_text()), f"{stem.name}.png", fid))
    Console().print(f"written: {stem}.json, .png, .md")


@torch.no_grad()
def main(
    model: str = "shapes-flux",
    rows: Annotated[list[str] | None, typer.Option(help="names with wildcards; may be given several times")] = None,
    steps: Annotated[int, typer.Option(min=6)] = 50,
    counts: Annotated[str, typer.Option(help="numbers of full steps to compare at")] = "12,10,9",
    prompts: Annotated[int, typer.Option(min=1)] = 4,
    rounds: Annotated[int, typer.Option(min=1)] = 4,
    trials: Annotated[int, typer.Option(min=2, help="of a calibration, and of the control's search")] = 24,
    out: Path = Path("docs/benchmarks"),
    weights: Annotated[Path | None, typer.Option(help="a pipeline's folder, in place of what ships")] = None,
    fresh: Annotated[bool, typer.Option(help="forget what the file holds")] = False,
) -> None:
    """Prepare, screen, measure; print the table and the targets; write record, plot and page."""
    try:
        at = numbers(counts)
        bench = Bench(model, steps, at, prompts, max(rounds, prompts), 500, trials, weights)
        record = Record.open(out / f"caches-{model}.json", bench.protocol(), fresh)
        try:
            measure(bench, record, assemble(bench, record, matcher(rows or ())))
        except KeyboardInterrupt:
            Console().print("stopped: what is measured is kept, the same command goes on")
        conclude(bench, record, out)
    except StackError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    typer.run(main)
