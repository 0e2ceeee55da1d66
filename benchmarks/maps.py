"""Who finds the key blocks that matter: producers of block maps on queries and keys of the reference models.

python benchmarks/maps.py [--model shapes-flux] [--prompts 1] [--steps 8] [--json FILE]
Queries and keys of all attention calls at three steps. Of each producer at equal density: the softmax mass that its
blocks hold (of all queries, exactly), the relative error of sparse attention against dense attention in fp32, the
density that it needs where 90 % of the mass is to be kept, and the CPU time of a map beside dense attention in the
model's dtype.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import torch
import typer
from common import Target, finish, interleaved, show

from stack import Stack
from stack.attention.flex import Flex
from stack.attention.kernels import dense, sparse_attention
from stack.attention.maps import Grid, block_map, computed_share, dropped_mass, mass_map
from stack.attention.policy_map import policy_map
from stack.attention.producers import PRODUCERS, STATIC, losses, sampled
from stack.attention.sparsity import SparsityPolicy
from stack.loading import load
from stack.models.sdpa import Answering, SdpaCall
from stack.reference.load import reference
from training.evaluate import held_out_scenes

MODELS = ["shapes-flux", "shapes-flux-128", "shapes-video", "shapes-dit"]
KEEPS, BUDGETS, WANTED = (0.25, 0.5), (0.02, 0.05, 0.1, 0.2), 0.9
Qkv = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def calls_of(model: str, prompts: int, steps: int) -> list[Qkv]:
    """Queries, keys and values (B, S, H, D) of self-attention at a quarter, half and three quarters of the steps."""
    known, pipe = reference(model), load(model)
    words = [known.prompt(scene) for scene in held_out_scenes(prompts, known.sample)]
    calls: list[Qkv] = []

    tokens = Stack(pipe).facts.tokens  # a refiner of the text has fewer

    def keep(call: SdpaCall) -> None:
        if call.tokens == tokens:
            q, k, v = (x.clone() for x in call.plain())
            calls.append((q, k, v))

    with Answering(keep):
        pipe(words, num_inference_steps=steps, generator=[torch.Generator().manual_seed(i) for i in range(prompts)])
    layers = len(calls) // steps
    return [call for part in (1, 2, 3) for call in calls[part * steps // 4 * layers :][:layers]]


def exact_shares(q: torch.Tensor, k: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Shares (B, H, rows, blocks) of the softmax mass, from all queries."""
    scores = q[:, grid.start : grid.end].transpose(1, 2) @ k.permute(0, 2, 3, 1) / math.sqrt(q.shape[-1])
    weights = scores.softmax(-1)[..., grid.start : grid.end].unflatten(-1, (grid.blocks, -1)).sum(-1)
    return torch.stack([row.mean(2) for row in weights.split(grid.key * grid.group, 2)], 2)


def error_db(made: torch.Tensor, right: torch.Tensor, grid: Grid) -> float:
    """Relative error of the outputs (B, S, H, D) of all queries in blocks."""
    inside = slice(grid.start, grid.end)
    return 20 * math.log10(max(1e-9, float((made - right)[:, inside].norm() / right[:, inside].norm())))


def rows_of(model: str, calls: list[Qkv], grid: Grid) -> list[dict[str, Any]]:
    """A row per producer and density, and one per budget of mass; means over the calls."""
    rows: dict[str, list[dict[str, float]]] = {}
    for given in calls:
        q, k, v = (x.float() for x in given)
        exact, right = exact_shares(q, k, grid), dense(q, k, v)
        maps = {f"mass {most}": mass_map(sampled(q, k, grid), grid, most) for most in BUDGETS}
        for name, make in {"all queries": exact_shares, **PRODUCERS}.items():
            shares = make(q, k, grid)
            maps |= {f"{name} {keep}": block_map(shares, grid, keep) for keep in KEEPS}
            if name not in STATIC:
                by_loss = losses(shares, v, grid)
                maps |= {f"{name}, by loss {keep}": block_map(by_loss, grid, keep) for keep in KEEPS}
            maps[f"{name}, {WANTED} of the mass"] = _fewest(shares, exact, grid)
        for name, kept in maps.items():
            mass = 1 - float(dropped_mass(exact, kept).mean())
            row = {
                "density": float(computed_share(kept, grid).mean()),
                "mass": mass,
                "error dB": error_db(sparse_attention(q, k, v, kept, grid, Flex()), right, grid),
            }
            rows.setdefault(name, []).append(row)
    return [
        {"model": model, "map": name, **{what: mean(row[what] for row in each) for what in each[0]}}
        for name, each in rows.items()
    ]


def _fewest(shares: torch.Tensor, exact: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The first blocks of every row in a producer's order that hold enough of the true mass, the same number in all."""
    for count in range(1, grid.blocks + 1):
        kept = block_map(shares, grid, count / grid.blocks)
        if 1 - float(dropped_mass(exact, kept).mean()) >= WANTED:
            break
    return kept


def times_of(model: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: Grid) -> dict[str, Any]:
    """Milliseconds of CPU time of dense attention and of a map by each producer."""
    runs: dict[str, Callable[[], object]] = {"dense": lambda: dense(q, k, v)}
    for name in PRODUCERS:
        policy = SparsityPolicy(0.5, producer=name)
        runs[name] = lambda policy=policy: policy_map(policy, q, k, v, grid, None)
    seconds = interleaved(runs, 11, clock=time.process_time)
    return {"model": model, **{f"{name} ms": 1000 * each for name, each in seconds.items()}}


def targets_of(by: dict[str, dict[str, Any]], model: str) -> list[Target]:
    """What is asked of the default: fewer blocks than a static window for the same mass, and at the same density 2 dB
    less error than the largest pooled scores, which were the default once."""
    sampled, window = (by[f"{name}, {WANTED} of the mass"]["density"] for name in ("sampled", "window"))
    less = by["pooled 0.5"]["error dB"] - by["sampled, by loss 0.5"]["error dB"]
    return [
        Target(f"{model}: density for {WANTED:.0%} of the mass, over a window's", sampled / window, 1.0, "<="),
        Target(f"{model}: dB of error below pooled scores at keep 0.5", less, 2.0),
    ]


@torch.inference_mode()
def main(
    model: Annotated[str, typer.Option(help="one reference model instead of all")] = "",
    prompts: Annotated[int, typer.Option(min=1)] = 1,
    steps: Annotated[int, typer.Option(min=4)] = 8,
    json: Path | None = None,
) -> None:
    """Print the tables, and write the record if asked to."""
    rows, times = [], []
    for name in [model] if model else MODELS:
        calls = calls_of(name, prompts, steps)
        facts = Stack(load(name)).facts
        behind = facts.family == "hunyuan-video"
        policy = SparsityPolicy(0.5, even_if_slower=True)
        grid = policy.grid(facts.image_tokens, facts.text_tokens, "cpu", behind)
        found = rows_of(name, calls, grid)
        show(f"{name}: {grid.tokens} tokens", found)
        rows += found
        times.append(times_of(name, *calls[0], grid))
    show("CPU time of one map", times)
    targets = []
    for name in dict.fromkeys(row["model"] for row in rows):
        targets += targets_of({row["map"]: row for row in rows if row["model"] == name}, name)
    finish([*rows, *times], targets, "cpu", json)


if __name__ == "__main__":
    typer.run(main)
