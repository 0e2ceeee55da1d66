"""The solver's places searched on finished pictures: one place is moved at a time, as long as that helps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch

from ..core.progress import ProgressLine
from ..core.validate import AtLeastOne, checked
from ..measure.metrics import psnr
from ..runtime.call_arguments import Call
from ..runtime.stack_like import StackLike
from ..solver.solver import Solver
from .quant.recording import taken_off
from .solver_pictures import SolverPictures

REACHES = (4, 2, 1)  # steps that a place is moved by, widest first
Places = tuple[int, ...]


@dataclass(frozen=True)
class PlacesFound:
    """What a search came to.

    Attributes:
        solver: the pass with the best places.
        psnr_db, start_psnr_db: mean over the prompts, of the best places and of those it began with.
        trials: places that were tried.
        interrupted: by Ctrl-C: the places are the best until then.
    """

    solver: Solver
    psnr_db: float
    start_psnr_db: float
    trials: int
    interrupted: bool = False

    def __str__(self) -> str:
        at = " ".join(map(str, self.solver.places))
        return f"steps {at}: {self.psnr_db:.1f} dB, {self.start_psnr_db:.1f} before, {self.trials} trials"


def search_places(
    stack: StackLike,
    prompts: Sequence[Any],
    seed: int = 0,
    trials: int = 60,
    budget: float | None = None,
    progress: bool = True,
    call: Call | None = None,
    wanted: Sequence[torch.Tensor] | None = None,
) -> PlacesFound:
    """Search the places of a stack's solver, and leave the stack with the best on.

    Prompt i has the seed `seed` + i. Places are tried with second-order weights: `fit_solver` comes after. Weights that
    are fitted already stay where no places are better without. After Ctrl-C the stack has the best places until then.

    Args:
        trials: how many places are tried at most, each with one picture per prompt.
        budget: seconds to spend at most, about; None for as long as the trials take.
        call: further arguments of every call, see `stack.runtime.pipeline_calls.PipelineCalls`.
        wanted: finished pictures to come close to, one per prompt; by default those of the stack without its solver
            and its cache on all steps.

    Raises:
        StackError: no solver in the stack, no prompts, no trials or no time.
    """
    checked(AtLeastOne, trials, "trials")
    of = SolverPictures.of(stack, "search_places()", prompts, seed, budget, call)
    given, own = of.solver, of.solver.without_weights()
    with stack.lock, taken_off(stack), ProgressLine("search_places", progress) as bar:
        steps = stack.facts.steps
        start = own.places or own.places_for(stack.facts).on(stack.facts.levels, steps)
        targets, _ = of.all_steps(bar, wanted)
        with of.with_solver(replace(own, places=start)) as other:
            reached = -math.inf

            def drawn(solver: Solver) -> float:
                made = [of.draw(other, solver, number, steps) for number in range(len(targets))]
                return fmean(map(psnr, made, targets))

            def score(places: Places) -> float:
                nonlocal reached
                found = drawn(replace(own, steps=None, places=places))
                if found > reached:
                    reached = found
                    of.runs.keep()
                return found

            def says(made: int, best: float) -> None:
                bar.says("places", made, trials, f"best {best:.1f} dB", most=of.over - time.monotonic())

            before = drawn(given) if given.corrections else -math.inf
            tried, interrupted = climb(score, start, steps, trials, says, lambda: time.monotonic() < of.over)
    best = max(tried, key=lambda places: tried[places])
    if before >= tried[best]:
        return PlacesFound(given, before, before, len(tried), interrupted)
    solver = replace(own, steps=None, places=best, of=steps)
    stack.replace(solver)
    return PlacesFound(solver, tried[best], max(before, tried[start]), len(tried), interrupted)


def climb(
    score: Callable[[Places], float],
    start: Places,
    steps: int,
    trials: int,
    on_trial: Callable[[int, float], None] = lambda made, best: None,
    more: Callable[[], bool] = lambda: True,
) -> tuple[dict[Places, float], bool]:
    """Every choice of places that was tried, with its score: hill climbing from `start`, in at most `trials` calls.

    Places are moved one after the other, the first never, by each of `REACHES` to either side, and on in a direction
    that helped. It ends where no move helps, or at Ctrl-C; whether that was it comes second. Pure.

    Args:
        steps: of the ladder.
        more: whether there is time for another one.
    """
    tried = {start: score(start)}
    best, gained = start, True

    def better(places: Places | None) -> bool:
        nonlocal best
        if places is None or places in tried or len(tried) >= trials or not more():
            return False
        tried[places] = score(places)
        won = tried[places] > tried[best]
        best = places if won else best
        on_trial(len(tried), tried[best])
        return won

    try:
        while gained and len(tried) < trials and more():
            gained = False
            for index, by in _moves(len(start)):
                while better(moved(best, index, by, steps)):
                    gained = True
    except KeyboardInterrupt:
        return tried, True
    return tried, False


def _moves(count: int) -> Iterator[tuple[int, int]]:
    """Index of a place, and by how many steps it is moved; the last places first, which matter most near the data."""
    for reach in REACHES:
        for index in range(count - 1, 0, -1):
            yield index, reach
            yield index, -reach


def moved(places: Places, index: int, by: int, steps: int) -> Places | None:
    """With one place moved; None where it would meet another or leave the ladder."""
    to = places[index] + by
    after = places[index + 1] if index + 1 < len(places) else steps
    if not places[index - 1] < to < after:
        return None
    return (*places[:index], to, *places[index + 1 :])
