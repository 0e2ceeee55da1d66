"""How much of the work that caches save they save in time, by the width of the model.

python benchmarks/widths.py --model shapes-flux --heads 3,12 --json docs/benchmarks/widths-shapes-flux.json

The models that ship are 192 wide, so that what a cached step costs beside the blocks shows. Here their architecture has
more heads, and with them width, and random weights: pictures mean nothing, times and FLOPs do. Every row takes its turn
in each round; Ctrl-C keeps the widths that are done.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from cachebench.bench import Bench
from cachebench.measuring import Measured, count, in_turn, line_of, work_of
from cachebench.rows import Row, fewer, preset
from cachebench.targets import published_targets
from common import Target, finish, numbers, show
from rich.console import Console
from rich.progress import Progress
from torch import nn

from stack.core.errors import StackError

# At the intervals the targets are about, or as published.
ROWS: dict[str, dict[str, Any]] = {
    "svd-published": {"interval": 7},
    "predictor-corrector": {"interval": 7},
    "taylorseer-published": {"interval": 7},
    "fora-published": {},
    "toca-published": {},
    "duca-published": {},
}
SHOWN = ("row", "heads", "seconds", "speedup", "work", "full", "of its work", "of its steps", "overhead_ms")


def widened(denoiser: Any, heads: int) -> nn.Module:
    """The same architecture with this many heads of the same size, and random weights."""
    torch.manual_seed(0)
    made = type(denoiser).from_config({**denoiser.config, "num_attention_heads": heads})
    return made.to(denoiser.device, denoiser.dtype).eval()


def rows_of(bench: Bench) -> Iterator[Row]:
    """The base and every cache."""
    yield fewer(bench, bench.steps, "base")
    yield from (preset(bench, name, name, **options) for name, options in ROWS.items())


def lines_at(bench: Bench, heads: int) -> list[dict[str, Any]]:
    """Every row at one width, its speedup also as a share of what its work and its full steps would allow."""
    bench.pipe.transformer = widened(bench.pipe.transformer, heads)
    rows = list(rows_of(bench))
    with Progress() as bar:
        task = bar.add_task("", total=len(rows) * (1 + bench.rounds))

        def tell(text: str) -> None:
            bar.update(task, advance=1, description=f"{heads} heads, {text}")

        found: list[Measured] = []
        for row in rows:
            tell(f"{row.name}: warm-up, counted")
            found.append(count(row, bench, bench.texts[0], bench.seeds[0]))
        ran = [each for each in found if not each.refusal]
        in_turn(ran, bench, bench.rounds, lambda m, n: tell(f"{m.row.name}, round {n + 1}"), lambda: None)
    for each in found:
        if each.refusal:
            Console().print(f"{each.row.name}: {each.refusal}", highlight=False)
    for each in ran:
        each.known = work_of(each, ran[0], bench)
    lines = [line_of(each, ran[0]) for each in ran]
    return [
        {
            **line, "heads": heads, "of its work": line["speedup"] * line["work"],
            "of its steps": line["speedup"] * line["full"] / bench.steps,
        }
        for line in lines
    ]  # fmt: skip


def targets_at(lines: list[dict[str, Any]], heads: int, steps: int) -> list[Target]:
    """What the cache benchmark asks of times, at this width."""
    return [Target(f"{heads} heads, {t.name}", t.value, t.target, t.op) for t in published_targets(lines, steps)]


@torch.no_grad()
def main(
    model: str = "shapes-flux",
    heads: Annotated[str, typer.Option(help="numbers of heads; 64 channels each in the models that ship")] = "3,12",
    steps: Annotated[int, typer.Option(min=14)] = 50,
    prompts: Annotated[int, typer.Option(min=1)] = 2,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    json_path: Annotated[Path | None, typer.Option("--json", help="where the record goes")] = None,
) -> None:
    """Measure at every width, print tables and targets, write the record."""
    found: list[dict[str, Any]] = []
    targets: list[Target] = []
    try:
        widths = numbers(heads)
        bench = Bench(model, steps, (), prompts, max(rounds, prompts), 0)
        try:
            for number in widths:
                lines = lines_at(bench, number)
                show(f"{model} with {number} heads, random weights", [{k: line[k] for k in SHOWN} for line in lines])
                found, targets = found + lines, targets + targets_at(lines, number, steps)
        except KeyboardInterrupt:
            Console().print("stopped: the widths that are done are kept")
    except StackError as error:
        raise SystemExit(f"error: {error}") from None
    if found:
        finish(found, targets, bench.pipe.device.type, json_path)


if __name__ == "__main__":
    typer.run(main)
