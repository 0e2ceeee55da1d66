"""Every cache preset, other people's caches and both controls on one reference model.

python benchmarks/caches.py --model shapes-flux                            into docs/benchmarks/caches-shapes-flux.*
python benchmarks/caches.py --model shapes-dit --rows 'svd*' --rows 'first-block*'    merged into it
python benchmarks/caches.py --steps 14 --counts 5,4 --prompts 2 --trials 3 --rows 'svd*' --out first-look   a first look

Everything runs eager and unquantized, so that rows differ in their cache alone. First whatever rows need is calibrated
and searched, and rivals are screened over their settings on two pictures; then every row makes the judged pictures, of
prompts and seeds that nothing before has seen; then every row takes its turn in each timed round, one picture at a
time. Ctrl-C keeps what is judged and measured, and the same command goes on; --fresh begins anew. How long it takes is
said before it starts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from cachebench.assemble import assemble, matcher
from cachebench.bench import Bench
from cachebench.measuring import Measured, count, in_turn, judged, line_of, refusable, work_of
from cachebench.page import page
from cachebench.papers import LEFT_OUT
from cachebench.plot import draw
from cachebench.quality import judge_of
from cachebench.record import Record, finished, known_quality, merge
from cachebench.rows import Row, fewer
from cachebench.targets import calibrated_targets, default_targets, over_controls, published_targets
from common import numbers, show, tell_targets
from rich.console import Console
from rich.progress import Progress

from stack.core.errors import StackError

SHOWN = (
    "row", "seconds", "speedup", "work", "full", "median", "flipped", "psnr", "perceptual", "ssim", "accuracy", "MB",
    "overhead_ms", "over controls",
)  # fmt: skip


def measure(bench: Bench, record: Record, rows: list[Row]) -> None:
    """Judge every row that is not finished, then time them in turn; the base takes part in every round."""
    rows = [row for row in rows if not finished(record.rows, row.name, row.settings, bench.rounds)]
    if not rows:
        return
    with Progress() as bar:
        task = bar.add_task("rows", total=(len(rows) + 1) * (bench.rounds + 1))

        def tell(text: str) -> None:
            bar.update(task, advance=1, description=text)

        base, running = judge_all(bench, record, rows, tell)

        def keep() -> None:
            record.rows = merge(record.rows, [line_of(each, base) for each in [base, *running]])
            record.save(bench.pipe.device.type)

        in_turn(
            [base, *running],
            bench,
            bench.rounds,
            lambda m, n: tell(f"{m.row.name}, round {n + 1} of {bench.rounds}"),
            keep,
        )


def judge_all(
    bench: Bench, record: Record, rows: list[Row], tell: Callable[[str], None]
) -> tuple[Measured, list[Measured]]:
    """The base and the rows that run, counted and judged; kept row by row. An earlier run's figures are not redone."""
    plain = fewer(bench, bench.steps, "base")
    known = {row.name: known_quality(record.rows, row.name, row.settings) for row in [plain, *rows]}
    tell("base: counted and judged")
    if all(known.values()):  # only times are missing
        return Measured(plain, known=known["base"]), [Measured(row, known=known[row.name]) for row in rows]
    base = count(plain, bench, bench.texts[0], bench.seeds[0])
    judge = judge_of(bench, reference := judged(plain, bench))
    base.known = work_of(base, base, bench) | judge(reference)
    running = []
    for row in rows:
        tell(f"{row.name}: counted and judged")
        found = Measured(row, known=known[row.name])
        if not found.known:
            found = count(row, bench, bench.texts[0], bench.seeds[0])
            with refusable(found):
                if not found.refusal:
                    found.known = work_of(found, base, bench) | judge(judged(row, bench))
            record.rows = merge(record.rows, [line_of(found, base)])
            record.save(bench.pipe.device.type)
        if not found.refusal:
            running.append(found)
    return base, running


def conclude(bench: Bench, record: Record, folder: Path) -> None:
    """Targets, table, plot and page of whatever is measured so far."""
    record.rows = over_controls(record.rows)
    targets = default_targets(record.rows, bench.model, bench.counts, bench.steps)
    targets += calibrated_targets(record.rows, bench.usual) + published_targets(record.rows, bench.steps)
    record.targets = [asdict(t) | {"met": t.met, "missed_by": t.missed_by} for t in targets]
    record.left_out = LEFT_OUT
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
    counts: Annotated[str, typer.Option(help="numbers of full steps to compare at")] = "12,9,6,5",
    prompts: Annotated[int, typer.Option(min=1, help="judged, each with its own seed")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="timed")] = 3,
    trials: Annotated[int, typer.Option(min=2, help="of a calibration and of every search")] = 16,
    out: Path = Path("docs/benchmarks"),
    weights: Annotated[Path | None, typer.Option(help="a pipeline's folder, in place of what ships")] = None,
    fresh: Annotated[bool, typer.Option(help="forget what the file holds")] = False,
) -> None:
    """Prepare, screen, judge, measure; print the table and the targets; write record, plot and page."""
    try:
        at = numbers(counts)
        bench = Bench(model, steps, at, prompts, rounds, trials, weights)
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
