"""Block-sparse attention on the reference models: what the blocks left out cost, and what a call takes.

python benchmarks/attention.py [--model shapes-flux] [--prompts 2] [--steps 20] [--quick] [--json FILE]
Attention is sparse wherever the steps allow it, also where the cost rule would keep it dense. Times are CPU time of one
call at the model's shapes: a map, attention by a map, dense attention.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import finish, interleaved, show

from stack import Stack
from stack.attention.flex import Flex
from stack.attention.kernels import dense, sparse_attention
from stack.attention.maps import block_map
from stack.attention.producers import sampled
from stack.attention.sparse_attn import SparseAttention
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


def rows_of(model: str, prompts: int, steps: int, wanted: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per variant: PSNR against dense attention, and the share of scores computed."""
    known, pipe = reference(model), load(model)
    words = [known.prompt(scene) for scene in held_out_scenes(prompts, known.sample)]
    with Stack(pipe, steps=steps) as plain:
        base = draw(plain, words, steps)
    rows = []
    for name, options in wanted.items():
        with Stack(pipe, steps=steps).sparse_attn(**options, even_if_slower=True) as stack:
            off = (draw(stack, words, steps) - base).square().flatten(1).mean(1)
            told = stack.report().passes["sparse_attn"]
        psnr = float((-10 * off.log10()).mean())
        rows.append(
            {"model": model, "row": name, "psnr": psnr, "density": told["density"], "dropped": told["dropped_mass"]}
        )
    return rows


def times_of(model: str) -> dict[str, Any]:
    """Milliseconds of CPU time of one attention call and its parts, random inputs in the machine's best dtype."""
    facts = Stack(load(model)).facts
    grid = SparseAttention(even_if_slower=True).policy.grid(facts.image_tokens, facts.text_tokens, "cpu")
    dtype = getattr(torch, facts.dtype)
    q, k, v = (torch.randn(1, grid.tokens, facts.heads, facts.head_dim).to(dtype) for _ in range(3))
    kept = block_map(sampled(q, k, grid), grid, 0.5)
    flex = Flex()
    runs: dict[str, Callable[[], object]] = {
        "map": lambda: block_map(sampled(q, k, grid), grid, 0.5),
        "sparse": lambda: sparse_attention(q, k, v, kept, grid, flex),
        "dense": lambda: dense(q, k, v),
    }
    seconds = interleaved(runs, 21, clock=time.process_time)
    return {"model": model, **{f"{name} ms": 1000 * each for name, each in seconds.items()}}


@torch.inference_mode()
def main(
    model: Annotated[str, typer.Option(help="one reference model instead of all")] = "",
    prompts: Annotated[int, typer.Option(min=1)] = 2,
    steps: Annotated[int, typer.Option(min=4)] = 20,
    quick: bool = False,
    json: Path | None = None,
) -> None:
    """Print the tables, and write the record if asked to."""
    models = [model] if model else list(REFERENCES)
    wanted = {name: ROWS[name] for name in list(ROWS)[: 1 if quick else None]}
    rows, times = [], [times_of(name) for name in models]
    for name in models:
        rows += rows_of(name, 1 if quick else prompts, steps, wanted)
        show(f"{name}: PSNR against dense attention", [row for row in rows if row["model"] == name])
    show("CPU time of one call", times)
    finish([*rows, *times], [], "cpu", json)


if __name__ == "__main__":
    typer.run(main)
