"""Errors asked for against errors that came: random prompts, seeds and stacks under `cache(max_error=...)`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from common import Target

from stack.compare.compare import captions

from .variants import STEPS, variants

ALLOWED = {"plain": 0.02, "W8A8": 0.05, "W4A16": 0.02, "sparse 50 %": 0.05}  # by stack: every pair has to be fitted
FIT_PROMPTS, FIT_SEED = 5, 3000
KEPT, USED = 0.95, 0.5


def asked(
    pipe: Any, model: str, runs: int, remember: Callable[[str, Callable[[], Any]], Any]
) -> Iterator[dict[str, Any]]:
    """One line per run, stack by stack, so that each is put on and fitted once."""
    draw = random.Random(0)
    drawn = [draw.choice(list(ALLOWED)) for _ in range(runs)]
    texts = captions(runs, seed=41, model=model)
    for name, allowed in ALLOWED.items():
        mine = [number for number, stack in enumerate(drawn) if stack == name]
        if mine:
            key = f"max_error {allowed:g} on {name}, {len(mine)} runs"
            yield from remember(key, lambda n=name, a=allowed, m=mine: _runs(pipe, model, n, a, m, texts))


def _runs(
    pipe: Any, model: str, name: str, allowed: float, numbers: list[int], texts: list[str]
) -> list[dict[str, Any]]:
    variant = next(v for v in variants(model) if v.name == name)
    with variant.build(pipe) as stack:
        exact = {number: final(stack, texts[number], number) for number in numbers}
    stack = variant.build(pipe).cache("svd", max_error=allowed, gains=(1.0, 1.0))
    lines = []
    try:
        stack.fit_gate(captions(FIT_PROMPTS, seed=77, model=model), seed=FIT_SEED)
        for number in numbers:
            made = final(stack, texts[number], number)
            error = float((made - exact[number]).norm() / exact[number].norm())
            report = stack.report()
            estimate = report.passes["cache"]["estimated_error"]
            lines.append(
                {"stack": name, "asked": allowed, "measured": error, "estimated": estimate, "full": report.full_steps}
            )
    finally:
        stack.undo()
    return lines


def final(stack: Any, text: str, number: int) -> torch.Tensor:
    """Final latents of a run."""
    generator = torch.Generator().manual_seed(9000 + number)
    made = stack(text, num_inference_steps=STEPS, generator=generator, output_type="latent", return_dict=False)[0]
    return torch.as_tensor(made).float()


def budget_targets(lines: list[dict[str, Any]]) -> list[Target]:
    """How many kept to what was asked, and how much of it the median run used."""
    used = [line["measured"] / line["asked"] for line in lines]
    return [
        Target(f"max_error over {len(used)} runs: share kept", sum(u <= 1 for u in used) / len(used), KEPT),
        Target(f"max_error over {len(used)} runs: median use of what is allowed", median(used), USED),
    ]
