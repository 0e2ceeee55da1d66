"""Trained adapters against their teacher: pictures, accuracy, time, and what int8 adds to either.

python benchmarks/distill.py [--quick] [--model shapes-flux] [--prompts 32] [--json FILE]

Rows: the base at all of its steps and at the adapters' (its own scheduler, and a second-order solver), every adapter
that ships for the model, and both under int8. PSNR is against the base at all steps with the same seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import Target, finish, interleaved, numbers, show
from PIL import Image
from rich.progress import track

from stack import Stack
from stack.comparison.grid import draw_grid
from stack.core.facts import best_dtype
from stack.measure.figure import save_small
from stack.measure.metrics import psnr
from stack.measure.multistep import multistep_of
from stack.reference.load import Reference, load, load_reader, reference
from training.evaluate import held_out_scenes

BATCH = 4
STEPS = 50
ASKED = {8: {"accuracy": 0.97, "speedup": 6.0}, 4: {"accuracy": 0.9, "speedup": 11.0, "gain": 3.0}}
INT8_LOSS_DB = 1.0
SHOWN = 4  # prompts in the picture beside the record


@dataclass(frozen=True)
class Row:
    """A way to make pictures; `entered` puts it on the pipeline for a while and gives what to call."""

    name: str
    steps: int
    entered: Callable[[], Any]


@contextmanager
def plain(pipe: Any) -> Iterator[Any]:
    yield pipe


@contextmanager
def second_order(pipe: Any) -> Iterator[Any]:
    own, pipe.scheduler = pipe.scheduler, multistep_of(pipe.scheduler)
    try:
        yield pipe
    finally:
        pipe.scheduler = own


def rows_of(pipe: Any, model: str, counts: tuple[int, ...]) -> list[Row]:
    """The base first."""

    def stack(steps: int, adapter: str = "", int8: bool = False) -> Stack:
        made = Stack(pipe, steps=steps)
        made = made.distill(adapter) if adapter else made
        return made.quantize("int8") if int8 else made

    rows = [Row("base", STEPS, lambda: plain(pipe)), Row("base, int8", STEPS, lambda: stack(STEPS, int8=True))]
    for n in counts:
        name = f"{model}-{n}"
        rows += [
            Row(f"{n} steps", n, lambda: plain(pipe)),
            Row(f"{n} steps, second order", n, lambda: second_order(pipe)),
            Row(name, n, lambda n=n, name=name: stack(n, name)),
            Row(f"{name}, int8", n, lambda n=n, name=name: stack(n, name, int8=True)),
        ]
    return rows


def pictures(run: Any, texts: list[str], steps: int, first: int) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(first + i) for i in range(len(texts))]
    made = run(texts, num_inference_steps=steps, generator=generators, output_type="pt", return_dict=False)[0]
    return torch.as_tensor(made).float()


def accuracy(made: torch.Tensor, scenes: list[Any], model: Reference, reader: Any) -> float:
    """Share of the asked-for attributes that the reader finds."""
    seen = reader.read(made * 2 - 1)
    hits = [
        found[name] == model.answers(scene)[name]
        for found, scene in zip(seen, scenes, strict=True)
        for name in model.asked
    ]
    return sum(hits) / len(hits)


def quality(row: Row, scenes: list[Any], model: Reference) -> torch.Tensor:
    """Pictures of all scenes."""
    made = []
    with row.entered() as run:
        for start in track(range(0, len(scenes), BATCH), description=row.name):
            texts = [model.prompt(scene) for scene in scenes[start : start + BATCH]]
            made.append(pictures(run, texts, row.steps, start))
    return torch.cat(made)


def seconds(rows: list[Row], text: str, rounds: int) -> dict[str, float]:
    """Median seconds of one picture; rows take turns, each put on and taken off outside its time."""

    found: dict[str, list[float]] = {row.name: [] for row in rows}
    for _ in range(rounds):
        for row in rows:
            with row.entered() as run:
                call = partial(pictures, run, [text], row.steps, 0)
                found[row.name].append(interleaved({row.name: call}, rounds=1, warm_up=1)[row.name])
    return {name: sorted(values)[len(values) // 2] for name, values in found.items()}


def targets_of(rows: list[dict[str, Any]], model: str) -> list[Target]:
    """What is asked of the adapters, from the rows."""
    by, targets = {row["row"]: row for row in rows}, []
    for n, asked in ASKED.items():
        if (own := by.get(f"{model}-{n}")) is None:
            continue
        share = own["accuracy"] / by["base"]["accuracy"]
        targets.append(Target(f"{n} steps: accuracy over the base's", share, asked["accuracy"]))
        targets.append(Target(f"{n} steps: speedup over {STEPS} steps", own["speedup"], asked["speedup"]))
        if "gain" in asked:
            gain = own["psnr"] - by[f"{n} steps"]["psnr"]
            targets.append(Target(f"{n} steps: dB above the base at {n} steps", gain, asked["gain"]))
        lost = by["base, int8"]["psnr"] - by[f"{model}-{n}, int8"]["against the adapter"]
        targets.append(
            Target(f"{n} steps: dB that int8 costs beyond its own loss on the base", lost, INT8_LOSS_DB, "<=")
        )
    return targets


def sheet(rows: list[dict[str, Any]], texts: list[str], made: dict[str, torch.Tensor]) -> Image.Image:
    """The first pictures of every row but those under int8, which look the same."""
    told = [
        {"name": row["row"], "role": "base" if row["row"] == "base" else "", "group": group_of(row["row"])}
        | {"psnr_db": row["psnr"], "speedup": row["speedup"], "full_steps": row["steps"], "steps": row["steps"]}
        | {"same_as": None}
        for row in rows
        if not row["row"].endswith("int8")
    ]
    return draw_grid(
        {"rows": told, "prompts": texts}, {name: pictures[: len(texts)] for name, pictures in made.items()}
    )


def group_of(name: str) -> str:
    """The colour's group of a row."""
    return "base" if name == "base" else "control" if "steps" in name else "all"


@torch.no_grad()
def main(
    model: str = "shapes-flux",
    counts: str = "8,4",
    prompts: Annotated[int, typer.Option(min=2)] = 32,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    quick: bool = False,
    json: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Measure, print, and write the record."""
    known, reader = reference(model), load_reader(model)
    pipe = load(model, best_dtype(torch.device("cpu")))
    scenes = held_out_scenes(8 if quick else prompts, known.sample)
    rows = rows_of(pipe, model, numbers(counts))
    made = {row.name: quality(row, scenes, known) for row in rows}
    took = seconds(rows, known.example, 2 if quick else rounds)
    lines = []
    for row in rows:
        adapter = row.name.removesuffix(", int8")
        lines.append(
            {
                "row": row.name,
                "steps": row.steps,
                "seconds": took[row.name],
                "speedup": took["base"] / took[row.name],
                "psnr": None if row.name == "base" else psnr(made[row.name], made["base"]),
                "against the adapter": psnr(made[row.name], made[adapter]) if adapter != row.name else None,
                "accuracy": accuracy(made[row.name], scenes, known, reader),
            }
        )
    show(f"{model}, {len(scenes)} prompts, {torch.get_num_threads()} threads, {pipe.transformer.dtype}", lines)
    finish(lines, targets_of(lines, model), "cpu", json)
    if json:
        texts = [known.prompt(scene) for scene in scenes[:SHOWN]]
        save_small(sheet(lines, texts, made), json.with_suffix(".png"))


if __name__ == "__main__":
    typer.run(main)
