"""8-bit attention on a reference model: what it costs of a picture, alone and with other passes.

python benchmarks/sage.py [--prompts 4] [--steps 20] [--json FILE]
On a CPU its arithmetic in plain torch: errors mean something, times do not. bf16, as the kernel takes no fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from attention import draw
from common import finish, show

from stack import Stack
from stack.loading import load
from stack.reference.load import reference
from training.evaluate import held_out_scenes

MODEL = "shapes-dit"  # 256 tokens; the others have 1,040, fewer than the kernel takes with a tail
FEATURES = ("last hidden state", "output")


def sage(stack: Stack) -> Stack:
    return stack.sage_attn(even_if_slower=True)


def int8(stack: Stack) -> Stack:
    return stack.quantize("int8")


def sparse(stack: Stack) -> Stack:
    return stack.sparse_attn(0.5, even_if_slower=True)


ROWS: dict[str, Callable[[Stack], Stack]] = {
    "8-bit attention": sage,
    "int8 linears": int8,
    "int8 linears + 8-bit attention": lambda stack: sage(int8(stack)),
    "int8 linears, ends kept": lambda stack: stack.quantize("int8", ends="keep"),
    "int8 linears, ends kept + 8-bit attention": lambda stack: sage(stack.quantize("int8", ends="keep")),
    "sparse 0.5": sparse,
    "sparse 0.5 + 8-bit attention": lambda stack: sage(sparse(stack)),
    "SVD-Cache": lambda stack: stack.cache("svd"),
    "SVD-Cache + 8-bit attention": lambda stack: sage(stack.cache("svd")),
}


def rows_of(pipe: Any, words: list[str], steps: int) -> list[dict[str, Any]]:
    """A row per variant: PSNR against the model alone, and how many calls were in 8 bits."""
    with Stack(pipe, steps=steps) as plain:
        base = draw(plain, words, steps)
    rows = []
    for name, build in ROWS.items():
        with build(Stack(pipe, steps=steps)) as stack:
            off = (draw(stack, words, steps) - base).square().flatten(1).mean(1)
            told = stack.report().passes.get("sage_attn", {})
        psnr = float((-10 * off.log10()).mean())
        rows.append({"row": name, "psnr": psnr, **told})
    return rows


def floors_of(pipe: Any, words: list[str], steps: int) -> list[dict[str, Any]]:
    """What neighbouring steps share of the error of 8-bit attention, and what they do not, over all noise levels."""
    floor = sage(Stack(pipe, steps=steps)).noise_floor(words)
    rows = []
    for name in FEATURES:
        splits = floor.features[name]
        shares = {kind: [getattr(split, kind) for split in splits] for kind in ("bias", "random")}
        least = {f"{kind}, least": min(values) for kind, values in shares.items()}
        most = {f"{kind}, most": max(values) for kind, values in shares.items()}
        rows.append({"feature": name, **least, **most})
    return rows


def main(
    prompts: Annotated[int, typer.Option(min=1)] = 4,
    steps: Annotated[int, typer.Option(min=4)] = 20,
    json: Path | None = None,
) -> None:
    """Print the tables, and write the record if asked to."""
    known, pipe = reference(MODEL), load(MODEL, torch.bfloat16)
    words = [known.prompt(scene) for scene in held_out_scenes(prompts, known.sample)]
    rows, floors = rows_of(pipe, words, steps), floors_of(pipe, words, steps)
    show("PSNR against the model alone", rows)
    show("error of 8-bit attention", floors)
    finish([*rows, *floors], [], "cpu", json)


if __name__ == "__main__":
    typer.run(main)
