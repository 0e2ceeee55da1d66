"""How many finished pictures a search of the full steps needs: placed by noise level, moved step by step, or at random.

python benchmarks/search.py [--full-steps 9] [--trials 12]
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import accumulate
from typing import Annotated

import torch
import typer
from common import show
from rich.progress import track

from stack import Stack
from stack.caching.cache import Cache
from stack.caching.candidate import WHOLE, Candidate
from stack.caching.noise_schedule import Levels
from stack.calibration.search import Scored, openings, search, spread
from stack.calibration.trials import Trials
from stack.loading import load
from stack.reference.captions import captions

STEPS = 50
Score = Callable[[Candidate], float]


def at_random(score: Score, count: int, trials: int, seed: int) -> list[float]:
    """Scores of schedules drawn at random, step 0 in all of them."""
    rng = random.Random(seed)
    drawn = [tuple(sorted(rng.sample(range(1, STEPS), count - 1))) for _ in range(trials)]
    return [score(Candidate((0, *rest), WHOLE, corrected=True)) for rest in track(drawn, description="at random")]


def step_by_step(score: Score, count: int, trials: int) -> list[float]:
    """Scores of a hill climb from the even spread, one full step moved at a time."""
    start = Candidate(spread(count, STEPS, 1.0), WHOLE, corrected=True)
    return _scores(Scored(score, trials), start, [])


def by_noise(score: Score, levels: Levels, count: int, trials: int) -> list[float]:
    """Scores of what calibration opens with, then of moves from the best of it."""
    families = openings(Candidate(spread(count, STEPS, 1.0), WHOLE, corrected=True), STEPS, levels=levels)
    return _scores(Scored(score, trials), families[0][0], families)


def _scores(scored: Scored, start: Candidate, families: list[list[Candidate]]) -> list[float]:
    return [value for _, value in search(scored, start, STEPS, varied=False, families=families).trials]


@torch.no_grad()
def main(
    full_steps: Annotated[int, typer.Option(min=2)] = 9,
    trials: Annotated[int, typer.Option(min=2)] = 12,
    model: str = "shapes-flux",
) -> None:
    """Print the best PSNR after each number of trials, for the three searches."""
    stack, cache = Stack(load(model), steps=STEPS).cache("svd"), Cache("svd")
    runs = Trials(stack, cache, captions(3, seed=77, model=model), STEPS, 0)
    searches: dict[str, Callable[[Score], list[float]]] = {
        "by noise level": lambda score: by_noise(score, runs.levels, full_steps, trials),
        "step by step": lambda score: step_by_step(score, full_steps, trials),
        "random": lambda score: at_random(score, full_steps, trials, seed=0),
    }
    curves = {}
    for name, run in searches.items():
        runs.restart()
        curves[name] = run(runs.score)
    best = {name: list(accumulate(values, max)) for name, values in curves.items()}
    rows = [{"trials": i + 1, **{name: b[min(i, len(b) - 1)] for name, b in best.items()}} for i in range(trials)]
    show(f"{model}, {full_steps} of {STEPS} full steps, best PSNR in dB", rows)


if __name__ == "__main__":
    typer.run(main)
