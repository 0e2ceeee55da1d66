"""Block-sparse attention: the time and the error of one call, and what the blocks left out cost in pictures.

python benchmarks/attention.py [--model shapes-flux] [--prompts 2] [--steps 20] [--tokens 1024,4096] [--json FILE]
Calls: CPU time by back end, length, head size and kept share, on queries and keys of smooth random fields, and the
error of outputs against float64. Pictures: attention is sparse wherever the steps allow it, also where the cost rule
would keep it dense.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from attentionbench import call_rows, call_targets
from common import finish, numbers, show

from stack import Stack
from stack.loading import load
from stack.reference.load import REFERENCES, reference
from training.evaluate import held_out_scenes

ROWS: dict[str, dict[str, Any]] = {
    "keep 0.5": {"keep": 0.5},
    "keep 0.5, pooled scores": {"keep": 0.5, "producer": "pooled"},
    "keep 0.75": {"keep": 0.75},
    "keep 0.25": {"keep": 0.25},
    "max_mass 0.05": {"max_mass": 0.05},
    "max_mass 0.2": {"max_mass": 0.2},
}


def draw(stack: Stack, words: list[str], steps: int) -> torch.Tensor:
    """Pictures or videos (B, ...) in [0, 1], from the prompts' own seeds."""
    generators = [torch.Generator().manual_seed(i) for i in range(len(words))]
    out = stack(words, num_inference_steps=steps, generator=generators, output_type="pt")
    return next(iter(out.values())).float()


def rows_of(model: str, prompts: int, steps: int) -> list[dict[str, Any]]:
    """A row per variant: PSNR against dense attention, and the share of scores computed."""
    known, pipe = reference(model), load(model)
    words = [known.prompt(scene) for scene in held_out_scenes(prompts, known.sample)]
    with Stack(pipe, steps=steps) as plain:
        base = draw(plain, words, steps)
    rows = []
    for name, options in ROWS.items():
        with Stack(pipe, steps=steps).sparse_attn(**options, even_if_slower=True) as stack:
            off = (draw(stack, words, steps) - base).square().flatten(1).mean(1)
            told = stack.report().passes["sparse_attn"]
        psnr = float((-10 * off.log10()).mean())
        rows.append(
            {"model": model, "row": name, "psnr": psnr, "density": told["density"], "dropped": told["dropped_mass"]}
        )
    return rows


@torch.inference_mode()
def main(
    model: Annotated[str, typer.Option(help="one reference model instead of all")] = "",
    prompts: Annotated[int, typer.Option(min=1)] = 2,
    steps: Annotated[int, typer.Option(min=4)] = 20,
    tokens: str = "1024,2304,4096,9216,16384",
    sizes: Annotated[str, typer.Option(help="of a head")] = "64,128",
    json: Path | None = None,
) -> None:
    """Print the tables, and write the record if asked to."""
    calls = [row for size in numbers(sizes) for length in numbers(tokens) for row in call_rows(length, size)]
    show("one call: CPU time, and error against float64", calls)
    rows = []
    for name in [model] if model else REFERENCES:
        rows += rows_of(name, prompts, steps)
        show(f"{name}: PSNR against dense attention", [row for row in rows if row["model"] == name])
    finish([*calls, *rows], call_targets(calls), "cpu", json)


if __name__ == "__main__":
    typer.run(main)
