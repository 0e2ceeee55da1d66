"""In which order tokens are cut into blocks of sparse attention, on queries and keys of the reference models.

python benchmarks/orders.py [--prompts 1] [--steps 8] [--every 4] [--json FILE]
Of one in `every` attention calls at three steps: the relative error of sparse attention against dense attention in
fp32 and the density, for all orders and for the choice by head, where half of the blocks are kept and where outputs may
be off by 5 %. Then pooled scores with and without a guard for blocks whose tokens are unlike, at equal density; and the
CPU time of ordering and of choosing beside dense attention in the model's dtype.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from common import finish, interleaved, show
from maps import Qkv, calls_of, error_db

from stack import Stack
from stack.attention.flex import Flex
from stack.attention.head_orders import best_orders
from stack.attention.kernels import dense, sparse_attention
from stack.attention.maps import Grid, block_map, computed_share, cut
from stack.attention.policy_map import policy_map
from stack.attention.producers import pooled
from stack.attention.sparsity import SparsityPolicy
from stack.attention.token_order import BY_HEAD, ORDERS, TokenOrder, tables
from stack.loading import load

MODELS = ("shapes-flux", "shapes-video", "shapes-flux-128")
POLICIES = {
    "sampled 0.5": SparsityPolicy(0.5),
    "window 0.5": SparsityPolicy(0.5, producer="window"),
    "error 0.05": SparsityPolicy(0.0, max_error=0.05, even_if_slower=True),
}
GUARDED = 0.55  # density of both maps, at most
UNLIKE = 0.1  # share of the blocks that the guard keeps
Row = dict[str, float]


def ordered(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, right: torch.Tensor, grid: Grid, shape: tuple[int, ...]
) -> Iterator[tuple[str, Row]]:
    """Rows of each policy by the order of the tokens, with the share of heads that have which."""
    found = tables(shape, grid)
    for name, policy in POLICIES.items():
        best = best_orders(policy, lambda: (q, k, v), found, grid)
        for number, order in enumerate((*ORDERS, BY_HEAD)):
            chosen = best if order == BY_HEAD else torch.full_like(best, number)
            tokens = TokenOrder(found, chosen)
            put = tokens.put(q), tokens.put(k), tokens.put(v)
            kept = policy_map(policy, *put, grid, None).kept
            made = tokens.undo(sparse_attention(*put, kept, grid, Flex()))
            heads = {each: float((chosen == i).float().mean()) for i, each in enumerate(ORDERS)}
            yield f"{name}, {order}", {**_row(made, right, kept, grid), **heads}


def guard(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, right: torch.Tensor, grid: Grid
) -> Iterator[tuple[str, Row]]:
    """Rows of pooled scores, with the guard of SpargeAttn (arXiv 2502.18137) and without it, as dense.

    Key blocks and rows whose tokens are least alike (mean cosine of all pairs) are kept whole.
    """
    inside = (F.normalize(x[:, grid.start : grid.end].transpose(1, 2), dim=-1) for x in (q, k))
    alike_q, alike_k = (x.unflatten(2, (grid.blocks, -1)).mean(3).norm(dim=-1) for x in inside)
    alike_rows = torch.stack([part.amin(-1) for part in alike_q.split(grid.group, -1)], -1)
    rows, columns = (x <= x.quantile(UNLIKE, dim=-1, keepdim=True) for x in (alike_rows, alike_k))
    shares = pooled(q, k, grid)
    maps = [block_map(shares, grid, count / grid.blocks) for count in range(grid.blocks, 0, -1)]
    with_guard = (each | columns[:, :, None] | rows[..., None] for each in maps)
    kept = next(each for each in with_guard if computed_share(each, grid).mean() <= GUARDED)
    density = computed_share(kept, grid).mean()
    plain = next(each for each in maps if computed_share(each, grid).mean() <= density)
    for name, each in (("pooled", plain), ("pooled, guarded", kept)):
        yield name, _row(sparse_attention(q, k, v, each, grid, Flex()), right, each, grid)


def _row(made: torch.Tensor, right: torch.Tensor, kept: torch.Tensor, grid: Grid) -> Row:
    return {"density": float(computed_share(kept, grid).mean()), "error dB": error_db(made, right, grid)}


def rows_of(model: str, calls: list[Qkv], grid: Grid, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """Means over the calls."""
    rows: dict[str, list[Row]] = {}
    for given in calls:
        q, k, v = (x.float() for x in given)
        right = dense(q, k, v)
        for name, row in (*ordered(q, k, v, right, grid, shape), *guard(q, k, v, right, grid)):
            rows.setdefault(name, []).append(row)
    return [
        {"model": model, "map": name, **{what: mean(row[what] for row in each) for what in each[0]}}
        for name, each in rows.items()
    ]


def times_of(
    model: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: Grid, shape: tuple[int, ...]
) -> dict[str, Any]:
    """Milliseconds of CPU time of dense attention, of putting a call in order and back, and of the choice by head."""
    found = tables(shape, grid)

    def put() -> None:
        order = TokenOrder(found, torch.ones(q.shape[0], q.shape[2], dtype=torch.long))
        order.undo(order.put(q) + order.put(k) + order.put(v))

    runs: dict[str, Callable[[], object]] = {
        "dense": lambda: dense(q, k, v),
        "order": put,
        "choice": lambda: best_orders(POLICIES["sampled 0.5"], lambda: (q, k, v), found, grid),
    }
    seconds = interleaved(runs, 5, clock=time.process_time)
    return {"model": model, **{f"{name} ms": 1000 * each for name, each in seconds.items()}}


@torch.inference_mode()
def main(
    prompts: Annotated[int, typer.Option(min=1)] = 1,
    steps: Annotated[int, typer.Option(min=4)] = 8,
    every: Annotated[int, typer.Option(min=1)] = 4,
    json: Path | None = None,
) -> None:
    """Print the tables, and write the record if asked to."""
    rows, times = [], []
    for name in MODELS:
        facts = Stack(load(name)).facts
        calls = calls_of(name, prompts, steps)[::every]
        grid = cut(facts.image_tokens, facts.text_tokens, None, "cpu", text_last=facts.family == "hunyuan-video")
        found = rows_of(name, calls, grid, facts.grid)
        show(f"{name}: {grid.tokens} tokens", found)
        rows += found
        times.append(times_of(name, *calls[0], grid, facts.grid))
        show("CPU time", times)
    finish([*rows, *times], [], "cpu", json)


if __name__ == "__main__":
    typer.run(main)
