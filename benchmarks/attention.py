"""Block-sparse attention on the reference models: what maps, reused maps and denser full steps are worth.

python benchmarks/attention.py [--model shapes-flux] [--prompts 2] [--steps 20] [--quick] [--json FILE]
Attention is sparse wherever the steps allow it, also where the cost rule would keep it dense. Times are CPU time of one
call at the model's shapes: a map, a look at one that is kept, attention by a map, dense attention.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from common import Target, finish, show

from stack import Stack
from stack.attention.flex import Flex
from stack.attention.kernels import dense, sparse_attention
from stack.attention.maps import block_map
from stack.attention.mass import dropped_mass, sampled_queries
from stack.attention.sparse_attn import SparseAttention
from stack.loading import load_pipeline
from stack.reference.load import REFERENCES, reference
from training.evaluate import held_out_scenes

ROWS: dict[str, dict[str, Any]] = {
    "keep 0.5": {"keep": 0.5},
    "reused within 0.02": {"keep": 0.5, "reuse_maps": 0.02},
    "reused whatever they drop": {"keep": 0.5, "reuse_maps": 0.99},
    "full steps keep 0.75": {"keep": 0.5, "reuse_maps": 0.02, "anchor_keep": 0.75},
    "full steps dense": {"keep": 0.5, "reuse_maps": 0.02, "anchor_keep": 1.0},
    "keep 0.25": {"keep": 0.25},
    "keep 0.25, full steps keep 0.5": {"keep": 0.25, "reuse_maps": 0.02, "anchor_keep": 0.5},
}
FIGURES = ("density", "anchor_calls", "maps_made", "maps_reused", "maps_renewed", "dropped_mass", "dropped_mass_worst")


def draw(stack: Stack, words: list[str], steps: int) -> torch.Tensor:
    """Pictures or videos (B, ...) in [0, 1], from the prompts' own seeds."""
    generators = [torch.Generator().manual_seed(i) for i in range(len(words))]
    out = stack(words, num_inference_steps=steps, generator=generators, output_type="pt")
    return next(iter(out.values())).float()


def rows_of(model: str, prompts: int, steps: int, wanted: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per variant: PSNR against dense attention, and what became of the maps."""
    known, pipe = reference(model), load_pipeline(model)
    words = [known.prompt(scene) for scene in held_out_scenes(prompts, known.sample)]
    with Stack(pipe, steps=steps) as plain:
        base = draw(plain, words, steps)
    rows = []
    for name, options in wanted.items():
        with Stack(pipe, steps=steps).sparse_attn(**options, even_if_slower=True) as stack:
            off = (draw(stack, words, steps) - base).square().flatten(1).mean(1)
            told = stack.report().passes["sparse_attn"]
        psnr = float((-10 * off.log10()).mean())
        rows.append({"model": model, "row": name, "psnr": psnr, **{key: told.get(key) for key in FIGURES}})
    return rows


def times_of(model: str) -> dict[str, Any]:
    """Milliseconds of CPU time of one attention call and its parts, random inputs in the machine's best dtype."""
    facts = Stack(load_pipeline(model)).facts
    grid = SparseAttention(even_if_slower=True).policy.grid(facts.image_tokens, facts.text_tokens, "cpu")
    dtype = getattr(torch, facts.dtype)
    q, k, v = (torch.randn(1, grid.tokens, facts.heads, facts.head_dim).to(dtype) for _ in range(3))
    indices, queries = block_map(q, k, grid, 0.5), sampled_queries(grid, 0, torch.device("cpu"))
    flex = Flex()
    runs: dict[str, Callable[[], object]] = {
        "map": lambda: block_map(q, k, grid, 0.5),
        "look": lambda: dropped_mass(q, k, indices, grid, queries),
        "sparse": lambda: sparse_attention(q, k, v, indices, grid, flex),
        "dense": lambda: dense(q, k, v),
    }
    return {"model": model, **{f"{name} ms": _cpu_ms(run) for name, run in runs.items()}}


def _cpu_ms(run: Callable[[], object], rounds: int = 21) -> float:
    seconds = []
    for _ in range(rounds + 2):
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
    return 1000 * median(seconds[2:])


@torch.inference_mode()
def main(
    model: Annotated[str, typer.Option(help="one reference model instead of all")] = "",
    prompts: Annotated[int, typer.Option(min=1)] = 2,
    steps: Annotated[int, typer.Option(min=4)] = 20,
    quick: bool = False,
    json: Path | None = None,
) -> None:
    """Print the tables and the targets, and write the record if asked to."""
    models = [model] if model else list(REFERENCES)
    wanted = {name: ROWS[name] for name in list(ROWS)[: 2 if quick else None]}
    rows, times = [], [times_of(name) for name in models]
    for name in models:
        rows += rows_of(name, 1 if quick else prompts, steps, wanted)
        show(f"{name}: PSNR against dense attention", [row for row in rows if row["model"] == name])
    show("CPU time of one call", times)
    by = {(row["model"], row["row"]): row["psnr"] for row in rows}
    lost = [by[name, "keep 0.5"] - by[name, "reused within 0.02"] for name in models]
    targets = [Target("most PSNR that reused maps cost, dB", max(lost), 0.25, "<=")]
    finish([*rows, *times], targets, "cpu", json)


if __name__ == "__main__":
    typer.run(main)
