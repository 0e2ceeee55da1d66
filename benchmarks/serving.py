"""One stack serves hundreds of mixed requests: every answer is a fresh stack's, nothing grows, and undo() undoes.

python benchmarks/serving.py [--quick] [--model shapes-flux] [--cache svd] [--requests 300] [--json FILE]

int8, an adapter beside it and a cache over a shipped model. Requests differ in prompts, batch, seed, steps and size;
callbacks raise, callers abort, blocks run out of memory; adapters are exchanged, weights edited between requests and in
the middle of them; two to four threads, or tasks of an asyncio server, ask at the same time. Every finished request is
compared, bit for bit, with the same one on a stack and a model of its own. Ends with 1 if anything is not as it should
be. On a CPU; not run on a GPU yet.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from common import finish, show
from diffusers.utils.logging import disable_progress_bar
from rich.progress import track
from servebench.judge import look_at, rows_of, targets_of
from servebench.mix import draw_phases
from servebench.serve import Findings, Server
from servebench.world import SIZES, World, prompts_of, world_of

STEPS = (12, 14, 17, 20)
POOL = 10  # different requests that are asked again and again


def serve_all(
    world: World, requests: int, prompts: list[str], sizes: tuple[int, ...], seed: int, pool: int = POOL
) -> tuple[Findings, str]:
    """Serve the mix; what was found, and what undo() left behind."""
    before = look_at(world.pipe.transformer)
    server, compute_modes = Server(world), draw_phases(requests, prompts, STEPS, sizes, pool, seed)
    for compute_mode in track(compute_modes, "drawing afresh"):
        server.prepare([compute_mode])
    for compute_mode in track(compute_modes, "serving"):
        server.serve(compute_mode)
    world.stack.undo()
    after = look_at(world.pipe.transformer)
    names = ("keys", "content", "wrapped calls")
    return server.found, ", ".join(n for n, a, b in zip(names, before, after, strict=True) if a != b)


def main(
    model: str = "shapes-flux",
    cache: str = "svd",
    requests: Annotated[int, typer.Option(min=1)] = 300,
    quick: bool = False,
    seed: int = 0,
    json: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Serve, print, write the record."""
    disable_progress_bar()
    torch.set_num_threads(1)  # as many workers as threads would only wait for each other
    with tempfile.TemporaryDirectory() as folder:
        world = world_of(model, cache, Path(folder))
        found, left = serve_all(
            world, 30 if quick else requests, prompts_of(model), SIZES.get(model, (0,)), seed, 3 if quick else POOL
        )
    rows = rows_of(found)
    show(f"{model}, {cache}: {sum(found.served.values())} jobs", rows)
    for what in [*found.wrong, *([f"undo() left other {left}"] if left else [])]:
        print(what)
    targets = targets_of(found, left)
    memory = [{"served": served, "resident_bytes": size} for served, size in found.memory]
    finish([*rows, *memory], targets, "cpu", json)
    raise typer.Exit(not all(target.met for target in targets))


if __name__ == "__main__":
    typer.run(main)
