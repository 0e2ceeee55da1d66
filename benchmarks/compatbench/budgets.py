"""Errors asked for against errors that came: random prompts, seeds and stacks under `cache(max_error=...)`.

Run by itself, it is this part alone, a picture at a time; Ctrl-C loses one at most, the same command goes on:

python benchmarks/budgets.py [--model shapes-flux] [--runs 100] [--draw 41] [--seed 9000] [--out docs/benchmarks]
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from statistics import mean, median
from typing import Any

import torch
from common import Target

from stack import Stack
from stack.reference.captions import captions
from stack.runtime.report import steps_worth

from .variants import STEPS, variants

STACKS = ("plain", "W8A8", "sparse 50 %")
LEAST, MOST = 0.01, 0.1  # errors are drawn between these, evenly by logarithm
FIT_ERROR, FIT_PROMPTS, FIT_SEED = 0.03, 5, 3000  # one fit a stack serves every error
COUNTS = (5, 7, 10, 14, 20, 28, 40)  # of fixed schedules to compare with
KEPT, USED, MORE = 0.95, 0.5, 1.1
Remember = Callable[[str, Callable[[], Any]], Any]


def asked(
    pipe: Any, model: str, runs: int, remember: Remember, draw: int = 41, seed: int = 9000
) -> Iterator[dict[str, Any]]:
    """One line per run.

    Args:
        draw: of prompts, stacks and errors.
        seed: of the first run's noise; later ones count on.
    """
    numbers = random.Random(draw)
    texts = captions(runs, seed=draw, model=model)
    for number, text in enumerate(texts):
        name, allowed = numbers.choice(STACKS), math.exp(numbers.uniform(math.log(LEAST), math.log(MOST)))
        fit = remember(f"fit on {name}", lambda n=name: _fitted(pipe, model, n))
        key = f"max_error {allowed:.4g} on {name}, draw {draw}, seed {seed + number}"
        yield remember(key, lambda n=name, a=allowed, t=text, s=seed + number, f=fit: _line(pipe, model, n, a, t, s, f))


def _built(pipe: Any, model: str, name: str) -> Stack:
    return next(v for v in variants(model) if v.name == name).build(pipe)


def _fitted(pipe: Any, model: str, name: str) -> dict[str, float]:
    """What `fit_gate` finds, for every error, as options of the cache."""
    with _built(pipe, model, name).cache("svd", max_error=FIT_ERROR) as stack:
        stack.fit_gate(captions(FIT_PROMPTS, seed=77, model=model), seed=FIT_SEED)
        gate = stack.passes[-1].policy.gate
        return {"error_scale": gate.error_scale, "lead": gate.lead}


def _line(
    pipe: Any, model: str, name: str, allowed: float, text: str, seed: int, fit: dict[str, float]
) -> dict[str, Any]:
    with _built(pipe, model, name) as stack:
        exact = final(stack, text, seed)

    def measured(**options: Any) -> tuple[float, Any]:
        with _built(pipe, model, name).cache("svd", **options) as stack:
            made = final(stack, text, seed)
            return float((made - exact).norm() / exact.norm()), stack.report()

    error, report = measured(max_error=allowed, **fit)
    fixed = [measured(count=count)[0] for count in COUNTS]
    return {
        "stack": name, "asked": allowed, "measured": error, "estimated": report.passes["cache"]["estimated_error"],
        "full": steps_worth([step.computed for step in report.steps]), "fixed": fixed_count(error, fixed),
    }  # fmt: skip


def fixed_count(error: float, errors: Sequence[float]) -> float:
    """Full steps at which fixed schedules have this error; `errors` are those at `COUNTS`.

    Between two counts it is interpolated by logarithms. Outside of them it is the smallest of them, or all steps.
    """
    if error >= errors[0]:
        return float(COUNTS[0])
    for count, more, at, below in zip(COUNTS, COUNTS[1:], errors, errors[1:], strict=False):
        if below <= error < at:
            return count * (more / count) ** (math.log(at / error) / math.log(at / below))
    return float(STEPS)


def final(stack: Stack, text: str, seed: int) -> torch.Tensor:
    """Final latents of a run."""
    generator = torch.Generator().manual_seed(seed)
    made = stack(text, num_inference_steps=STEPS, generator=generator, output_type="latent", return_dict=False)[0]
    return torch.as_tensor(made).float()


def budget_targets(lines: list[dict[str, Any]]) -> list[Target]:
    """How many kept to what was asked, how much of it the median run used, and what fixed schedules need for that."""
    used = [line["measured"] / line["asked"] for line in lines]
    more = mean(line["full"] for line in lines) / mean(line["fixed"] for line in lines)
    return [
        Target(f"max_error over {len(used)} runs: share kept", sum(u <= 1 for u in used) / len(used), KEPT),
        Target(f"max_error over {len(used)} runs: median use of what is allowed", median(used), USED),
        Target(f"max_error over {len(used)} runs: full steps over a fixed schedule's at equal error", more, MORE, "<="),
    ]
