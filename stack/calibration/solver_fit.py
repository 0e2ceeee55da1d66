"""Weights of the solver's steps fitted to finished pictures, without a gradient through the model.

Few steps of a solver have few weights, 17 of five steps, and pictures change smoothly with them. So the least squares
problem of a non-stationary solver (Shaul et al. 2024, arXiv:2403.01329) is solved by Levenberg and Marquardt's method
with differences: one picture more per weight, prompt and round. Each picture counts by its own error, so that what
falls is the mean of 10 log10 of the errors, which is the mean PSNR.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np
import torch

from ..compat.calibrated_for import conditions
from ..core.facts import Facts
from ..core.progress import ProgressLine
from ..core.validate import AtLeastOne, checked
from ..measure.metrics import psnr
from ..runtime.call_arguments import Call
from ..runtime.stack_like import StackLike
from ..solver.numbers import recent
from ..solver.scheduler import PlacedSolver
from ..solver.solver import Solver
from .quant.recording import taken_off
from .solver_pictures import SolverPictures

STEP = 0.02  # of a weight, for a difference: far above the rounding of bf16, and still straight
DAMPING, LESS, MORE, TRIES = 1e-2, 0.1, 10.0, 3
GAIN = 0.03  # dB in a round below which it ends
DIGITS = 5
Draw = Callable[[int, np.ndarray], torch.Tensor]
"""The picture of a prompt, by its number, with these weights."""


@dataclass(frozen=True)
class SolverFitted:
    """What a fit came to.

    Attributes:
        solver: the pass with fitted weights.
        psnr_db, start_psnr_db: mean over the prompts, with them and before.
        rounds: that made pictures better.
        interrupted: by Ctrl-C, after a round: the weights are the best until then.
    """

    solver: Solver
    psnr_db: float
    start_psnr_db: float
    rounds: int
    interrupted: bool = False

    def __str__(self) -> str:
        return f"weights of {self.solver.count} steps: {self.psnr_db:.1f} dB, {self.start_psnr_db:.1f} before"


def fit_solver(
    stack: StackLike,
    prompts: Sequence[Any],
    seed: int = 0,
    rounds: int = 4,
    budget: float | None = None,
    progress: bool = True,
    call: Call | None = None,
    wanted: Sequence[torch.Tensor] | None = None,
) -> SolverFitted:
    """Fit the weights of the steps of a stack's solver, and leave the stack with them on.

    Prompt i has the seed `seed` + i; four prompts or more are wanted. It begins with the weights that the solver has,
    and leaves it as it is where no round makes its pictures better. After Ctrl-C the stack has the weights of the last
    round.

    Args:
        rounds: at most; each draws every prompt once per weight, and a few times more.
        budget: seconds to spend at most, about; a round that does not fit in is not begun.
        call: further arguments of every call, see `stack.runtime.pipeline_calls.PipelineCalls`.
        wanted: finished pictures to come close to, one per prompt; by default those of the stack without its solver
            and its cache on all steps.

    Raises:
        StackError: no solver in the stack, no prompts, no rounds or no time.
    """
    checked(AtLeastOne, rounds, "rounds")
    of = SolverPictures.of(stack, "fit_solver()", prompts, seed, budget, call)
    with stack.lock, taken_off(stack), ProgressLine("fit_solver", progress) as bar:
        steps = stack.facts.steps
        bare = of.solver.without_weights()
        at = bare.places_for(stack.facts).on(stack.facts.levels, steps)
        plain = replace(bare, steps=None, places=at, of=steps)
        targets, facts = of.all_steps(bar, wanted)
        start = weights_from(of.solver, at, facts)
        with of.with_solver(plain) as other:
            drawing = _Drawing(of, other, plain, steps, bar)
            found = fitted(drawing.draw, targets, start, rounds, drawing.turns, drawing.round_fits)
            scheduler = other.pipe.scheduler
            assert isinstance(scheduler, PlacedSolver)
            latent = scheduler.latent
        # Of the stack below: the solver's own steps are no condition of it.
        solver = with_weights(plain, found.weights, conditions(facts), latent) if found.rounds else of.solver
        stack.replace(solver)
    return SolverFitted(solver, found.psnr_db, found.start_psnr_db, found.rounds, found.interrupted)


@dataclass
class _Drawing:
    """Pictures of a stack with other weights of its solver, until a time is over."""

    of: SolverPictures
    stack: StackLike
    solver: Solver
    steps: int
    bar: ProgressLine
    drawn: int = 0
    began: float = field(default_factory=time.monotonic)
    _phase: str = "weights as they are: picture"
    _before: int = 0  # pictures drawn before this round
    _seconds: float = 0.0  # that a round takes

    @property
    def _pictures(self) -> int:
        """That the differences of a round take."""
        return weights_of(self.solver) * len(self.of.prompts)

    @property
    def _differences(self) -> float:
        """Runs that the differences of one prompt take: a weight changes no call before its step is taken."""
        count = self.solver.count
        calls = [count if self.of.runs.whole else count - 1 - at for at in range(count)]
        # One call more, about, for a picture's text and its decoding.
        return sum((1 + len(recent(at))) * (calls[at] + 1) / (count + 1) for at in range(count))

    def turns(self, made: int, best: float) -> None:
        """So many rounds are made, and the best weights come to so many dB."""
        now = time.monotonic()
        self._seconds = (now - self.began) * (1 if made else 1 + self._differences)
        self._phase, self._before, self.began = f"{best:.1f} dB, round {made + 1}: picture", self.drawn, now
        self.of.runs.keep()

    def draw(self, number: int, weights: np.ndarray) -> torch.Tensor:
        done, total = self.drawn - self._before, self._pictures if self._before else len(self.of.prompts)
        self.bar.says(self._phase, min(done, total), total)
        self.drawn += 1
        return self.of.draw(self.stack, with_weights(self.solver, weights, ()), number, self.steps)

    def round_fits(self) -> bool:
        """Whether a round fits into the time, by how long the last one took."""
        return time.monotonic() + self._seconds < self.of.over


def weights_of(solver: Solver) -> int:
    """How many weights a solver's steps have."""
    return sum(1 + len(recent(at)) for at in range(solver.count))


def weights_from(solver: Solver, places: tuple[int, ...], facts: Facts) -> np.ndarray:
    """The weights that a fit begins with: those that the solver has, if they are used at these places and on a stack
    with these facts below it; else 0, which is second order."""
    if solver.corrections and solver.places == places and not solver.fitted_elsewhere(facts):
        return np.concatenate([np.array(row) for row in solver.corrections])
    return np.zeros(weights_of(replace(solver.without_weights(), steps=len(places), places=places)))


def with_weights(solver: Solver, weights: np.ndarray, stamp: tuple[str, ...], latent: int = 0) -> Solver:
    """The solver with corrections, given as one row of all, and what they hold for."""
    rows, begin = [], 0
    for at in range(solver.count):
        end = begin + 1 + len(recent(at))
        rows.append(tuple(round(float(x), DIGITS) for x in weights[begin:end]))
        begin = end
    return replace(solver, corrections=tuple(rows), calibrated_for=stamp, latent=latent)


@dataclass(frozen=True)
class Fit:
    """Weights that were found, what they came to, in how many rounds, and whether Ctrl-C ended them."""

    weights: np.ndarray
    psnr_db: float
    start_psnr_db: float
    rounds: int
    interrupted: bool = False


def fitted(
    draw: Draw,
    wanted: Sequence[torch.Tensor],
    start: np.ndarray,
    rounds: int,
    on_round: Callable[[int, float], None] = lambda made, best: None,
    more: Callable[[], bool] = lambda: True,
) -> Fit:
    """The weights with which pictures come closest to those that are wanted.

    Args:
        start: those to begin with.
        more: whether there is time for another round.
    """
    made, size = [draw(i, start) for i in range(len(wanted))], len(start)
    before = fmean(map(psnr, made, wanted))
    found, damping = Fit(start, before, before, 0), DAMPING
    on_round(0, before)
    try:
        while found.rounds < rounds and more():
            normal, slope = _normal_equations(draw, wanted, found.weights, made)
            for _ in range(TRIES):
                damped = normal + damping * np.diag(np.diag(normal)) + 1e-12 * np.eye(size)
                weights = found.weights - np.linalg.solve(damped, slope)
                tried = [draw(i, weights) for i in range(len(wanted))]
                reached = fmean(map(psnr, tried, wanted))
                if reached > found.psnr_db:
                    break
                damping *= MORE
            else:
                break
            gain, made, damping = reached - found.psnr_db, tried, damping * LESS
            found = Fit(weights, reached, before, found.rounds + 1)
            on_round(found.rounds, reached)
            if gain < GAIN:
                break
    except KeyboardInterrupt:
        if not found.rounds:
            raise
        return replace(found, interrupted=True)
    return found


def _normal_equations(
    draw: Draw, wanted: Sequence[torch.Tensor], weights: np.ndarray, made: Sequence[torch.Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    """Of the least squares problem, straightened at these weights: (W, W) and (W,), summed over the prompts."""
    size = len(weights)
    normal, slope = np.zeros((size, size)), np.zeros(size)
    for number, (now, target) in enumerate(zip(made, wanted, strict=True)):
        off = (now.double() - target.double()).flatten()
        shifted = (draw(number, weights + STEP * unit) for unit in np.eye(size))
        columns = torch.stack([(one.float() - now.float()).flatten() / STEP for one in shifted])
        error = max(float(off.square().sum()), 1e-12)
        normal += (columns @ columns.T).double().numpy() / error
        slope += (columns @ off.float()).double().numpy() / error
    return normal, slope
