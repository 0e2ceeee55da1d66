"""Whether tokens in an order by head make better pictures in the same time, by size of the picture.

python benchmarks/order_pictures.py [--sizes 64,80,96,128] [--steps 12,5] [--out docs/benchmarks/order-pictures.json]

Every attention call of `shapes-flux-128` is sparse, in raster order and by head. PSNR against the same steps with dense
attention, median over prompts; seconds of CPU time of a picture, choosing the orders included, over those of the dense
one. Few steps are what a cache leaves: the choice is made once a request.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import process_time
from typing import Annotated, Any

import torch
import typer
from cachebench.bench import JUDGED_SEED, JUDGED_TEXTS
from common import Target, finish, numbers, show

from stack import Stack
from stack.attention.token_order import BY_HEAD, MANY_STEPS, MANY_TOKENS, RASTER
from stack.loading import load
from stack.measure.metrics import psnr
from stack.reference.captions import captions

MODEL, PATCH = "shapes-flux-128", 2
KEEPS = (0.5, 0.4)


def made(stack: Stack, texts: list[str], size: int, steps: int) -> tuple[list[torch.Tensor], float]:
    """Pictures (3, H, W), each from its own seed, and the CPU seconds of the median one."""
    found, seconds = [], []
    with stack:
        for i, text in enumerate(texts):
            generator, started = torch.Generator().manual_seed(JUDGED_SEED + i), process_time()
            call = {"num_inference_steps": steps, "height": size, "width": size, "output_type": "pt"}
            found.append(stack(text, generator=generator, **call).images[0])
            seconds.append(process_time() - started)
    return found, median(seconds)


def rows_of(pipe: Any, texts: list[str], size: int, steps: int) -> Iterator[dict[str, Any]]:
    """One row per share of the blocks and order."""
    exact, dense = made(Stack(pipe, steps=steps).dense_attn(), texts, size, steps)
    for keep in KEEPS:
        for order in (RASTER, BY_HEAD):
            everywhere = {"dense_first": 0, "dense_last": 0, "even_if_slower": True}
            stack = Stack(pipe, steps=steps).sparse_attn(keep=keep, order=order, **everywhere)
            pictures, seconds = made(stack, texts, size, steps)
            yield {
                "tokens": (size // PATCH) ** 2, "steps": steps, "keep": keep, "order": order,
                "dB": median(map(psnr, pictures, exact)), "time": seconds / dense,
            }  # fmt: skip


def targets_of(rows: list[dict[str, Any]]) -> list[Target]:
    """By head against raster order in the same time, where it is the default: dB over the line of its two shares."""
    by = {tuple(row[name] for name in ("tokens", "steps", "keep", "order")): row for row in rows}
    found = []
    for tokens, steps in dict.fromkeys((row["tokens"], row["steps"]) for row in rows):
        if tokens >= MANY_TOKENS and steps >= MANY_STEPS:
            slower, faster = (by[tokens, steps, keep, RASTER] for keep in KEEPS)
            by_head = by[tokens, steps, min(KEEPS), BY_HEAD]
            dB_per_time = (slower["dB"] - faster["dB"]) / (slower["time"] - faster["time"])
            raster = faster["dB"] + dB_per_time * (by_head["time"] - faster["time"])
            which = f"{tokens:,} tokens, {steps} steps: {min(KEEPS):.0%} by head, dB over raster order in that time"
            found.append(Target(which, by_head["dB"] - raster, 0))
    return found


@torch.inference_mode()
def main(
    sizes: str = "64,80,96,128",
    steps: str = "12,5",
    prompts: Annotated[int, typer.Option(min=1)] = 4,
    out: Path = Path("docs/benchmarks/order-pictures.json"),
) -> None:
    """Measure, print, and keep the record."""
    pipe, texts = load(MODEL), captions(prompts + 1, seed=JUDGED_TEXTS, model=MODEL)[1:]
    rows = [row for count in numbers(steps) for size in numbers(sizes) for row in rows_of(pipe, texts, size, count)]
    show(f"{MODEL}, {prompts} prompts", rows)
    finish(rows, targets_of(rows), "cpu", out)


if __name__ == "__main__":
    typer.run(main)
