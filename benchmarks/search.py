"""How many finished pictures a search of the full steps needs: proposed by theory, moved step by step, or at random.

python benchmarks/search.py [--full-steps 9] [--trials 12]
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Annotated

import torch
import typer
from calibrate import PROMPTS
from common import show
from rich.progress import track

from stack import Stack
from stack.caching.forecast import Forecast
from stack.caching.propose import Proposer
from stack.caching.search import WHOLE, Candidate, Scored, Trials, search, spread
from stack.caching.trajectory import Recorder, SegmentErrors, Trajectory, growth
from stack.measure.metrics import psnr
from stack.models.load import load_pipeline
from stack.models.sampler import error_weights, sampler_steps
from stack.passes.base import Pass
from stack.passes.cache import Cache

STEPS, DISTURBED = 50, (1, 2)
Score = Callable[[Candidate], float]


def at_random(score: Score, count: int, trials: int, seed: int) -> list[float]:
    """Scores of schedules drawn at random, step 0 in all of them."""
    rng = random.Random(seed)
    drawn = [tuple(sorted(rng.sample(range(1, STEPS), count - 1))) for _ in range(trials)]
    return [score(Candidate((0, *rest))) for rest in track(drawn, description="at random")]


def step_by_step(score: Score, count: int, trials: int) -> list[float]:
    """Scores of a hill climb from the uniform spread, one full step moved at a time."""
    start = Candidate(spread(count, STEPS, 1.0))
    return _scores(Scored(score, trials), start, propose=lambda _: None)


def by_theory(score: Score, errors: SegmentErrors, count: int, trials: int) -> list[float]:
    """Scores of what the proposer proposes, then of moves from the best of it."""
    start = Candidate(spread(count, STEPS, 1.0))
    return _scores(Scored(score, trials), start, Proposer(errors, start, STEPS))


def _scores(scored: Scored, start: Candidate, propose: Callable[[Trials], Candidate | None]) -> list[float]:
    return [value for _, value in search(scored, start, STEPS, propose, varied=False).trials]


@torch.no_grad()
def main(
    full_steps: Annotated[int, typer.Option(min=2)] = 9,
    trials: Annotated[int, typer.Option(min=2)] = 12,
    model: str = "shapes-flux",
) -> None:
    """Print the best PSNR after each number of trials, for the three searches."""
    stack, cache = Stack(load_pipeline(model), steps=STEPS).cache("svd"), Cache("svd")

    def pictures(in_place: Pass, prompts: Sequence[str] = PROMPTS) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
        return stack.replace(in_place)(list(prompts), generator=generators, output_type="pt").images

    def score(candidate: Candidate) -> float:
        return psnr(pictures(cache.calibrated(candidate, STEPS)), target)

    plain, disturbed = Trajectory(), Trajectory()
    target = pictures(Recorder(plain))
    pictures(Recorder(disturbed, DISTURBED), PROMPTS[:1])
    scale = error_weights(sampler_steps(stack.pipe), growth(plain, disturbed, DISTURBED[-1] + 1))
    curves = {
        "theory": by_theory(score, SegmentErrors(plain, scale, Forecast(1, WHOLE)), full_steps, trials),
        "step by step": step_by_step(score, full_steps, trials),
        "random": at_random(score, full_steps, trials, seed=0),
    }
    best = {name: list(accumulate(values, max)) for name, values in curves.items()}
    rows = [{"trials": i + 1, **{name: b[min(i, len(b) - 1)] for name, b in best.items()}} for i in range(trials)]
    show(f"{model}, {full_steps} of {STEPS} full steps, best PSNR in dB", rows)


if __name__ == "__main__":
    typer.run(main)
