"""Few-step adapters under the default cache, against the adapter uncached and against fewer of its steps.

python benchmarks/few_steps.py [--out docs/benchmarks/few-steps.json]

Per adapter and number of full steps: `cache("svd", count=N)`; as a first control one first-order step at each of the
same levels; as a second one as many steps of the solver, placed by itself. Pictures are those that the cache benchmark
judges: prompts and seeds on which nothing was chosen. Times are those of the first 8 pictures, made at once, in turn.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from cachebench.bench import BATCH, JUDGED_SEED, JUDGED_TEXTS, pictures
from common import Target, finish, interleaved, show

from stack import Stack
from stack.loading import load
from stack.measure.metrics import psnr
from stack.reference.captions import captions

ASKED = {"shapes-flux-8": {5: 52, 4: 46, 3: 42}, "shapes-video-8": {5: 52, 4: 46, 3: 42}, "shapes-flux-4": {3: 45}}
"""Adapter: number of full steps: median dB asked for."""


def made(stack: Stack, texts: list[str], steps: int) -> torch.Tensor:
    """All pictures, some at once, each from its own seed."""
    parts = range(0, len(texts), BATCH)
    return torch.cat([pictures(stack, texts[at : at + BATCH], steps, JUDGED_SEED + at) for at in parts])


def measured(adapter: str, prompts: int, rounds: int) -> list[dict[str, Any]]:
    """One line per number of full steps."""
    model, steps = adapter.rpartition("-")[0], int(adapter.rpartition("-")[2])
    pipe, texts = load(model), captions(prompts + 1, seed=JUDGED_TEXTS, model=model)[1:]

    def built() -> Stack:
        return Stack(pipe).distill(adapter)

    with built() as stack:
        base = made(stack, texts, steps)

    def drawn(stack: Stack) -> torch.Tensor:
        with stack:
            return made(stack, texts, steps)

    def middle(stack: Stack) -> float:
        return median(map(psnr, drawn(stack), base))

    lines = []
    for count in ASKED[adapter]:
        cached = built().cache("svd", count=count)
        ours = drawn(cached)
        full = [record.step for record in cached.report().steps if record.kind == "full"]
        plain, solver = (built().solver(places=full, order=1), built().solver(steps=count))
        runs = {"base": built(), "cached": cached, "plain": plain, "solver": solver}
        seconds = interleaved({name: partial(_once, run, texts, steps) for name, run in runs.items()}, rounds, 1)
        lines.append(
            {
                "adapter": adapter, "prompts": prompts, "steps": steps, "full": full, "work": steps / count,
                "speedup": seconds["base"] / seconds["cached"], "median": median(map(psnr, ours, base)),
                "pooled": psnr(ours, base),
                "plain": middle(plain), "plain_speedup": seconds["base"] / seconds["plain"],
                "solver": middle(solver), "solver_speedup": seconds["base"] / seconds["solver"],
            }
        )  # fmt: skip
    return lines


def _once(stack: Stack, texts: list[str], steps: int) -> None:
    with stack:
        pictures(stack, texts[:BATCH], steps, JUDGED_SEED)


def targets_of(lines: list[dict[str, Any]]) -> list[Target]:
    """What is asked of a line: its median, more than both controls, and 0.95 of the speedup that its work allows."""
    found = []
    for line in lines:
        name = f"{line['adapter']}, {len(line['full'])} of {line['steps']} full"
        found += [
            Target(f"{name}: median dB", line["median"], ASKED[line["adapter"]][len(line["full"])]),
            Target(f"{name}: dB over first-order steps", line["median"] - line["plain"], 0),
            Target(f"{name}: dB over the solver's", line["median"] - line["solver"], 0),
            Target(f"{name}: speedup over that of the work", line["speedup"] / line["work"], 0.95),
        ]
    return found


@torch.no_grad()
def main(
    prompts: Annotated[int, typer.Option(min=1)] = 16,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    out: Path = Path("docs/benchmarks/few-steps.json"),
) -> None:
    """Measure, print, and keep the record."""
    lines = [line for adapter in ASKED for line in measured(adapter, prompts, rounds)]
    show(f"few-step adapters, {prompts} prompts", [line | {"full": " ".join(map(str, line["full"]))} for line in lines])
    finish(lines, targets_of(lines), "cpu", out)


if __name__ == "__main__":
    typer.run(main)
