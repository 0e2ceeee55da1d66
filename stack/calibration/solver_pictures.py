"""What a search of places and a fit of weights share: a stack's solver, and the pictures it is to come close to."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..attention.sparse_attn import SparseAttention
from ..caching.cache import Cache
from ..core.errors import StackError
from ..core.facts import Facts
from ..core.passes import Pass
from ..core.progress import ProgressLine
from ..core.validate import NotNegative, Seed, checked, shown, some_prompts
from ..runtime.call import DenoiserCall
from ..runtime.call_arguments import Call
from ..runtime.pipeline_calls import PipelineCalls, pipeline_for
from ..runtime.stack_like import StackLike
from ..runtime.step import StepContext
from ..solver.solver import Solver
from .observe import Observe, Run, answer_calls


@dataclass(frozen=True)
class SolverPictures:
    """The solver of a stack, and how its pictures are drawn.

    Attributes:
        solver: as it is in the stack.
        rest: the other passes, without the cache: a solver's steps are all full.
        prompts: prompt i has the seed `seed` + i.
        over: when the time is over, on the clock of `time.monotonic`.
        runs: what is known of earlier pictures.
    """

    stack: StackLike
    solver: Solver
    rest: Sequence[Pass]
    prompts: Sequence[Any]
    seed: int
    calls: PipelineCalls
    over: float
    runs: PrefixRuns

    @classmethod
    def of(
        cls, stack: StackLike, what: str, prompts: Sequence[Any], seed: int, budget: float | None, call: Call | None
    ) -> SolverPictures:
        """The same, of what a caller asks for.

        Args:
            what: the caller's name, for errors.
            budget: seconds from now on; None for no limit.

        Raises:
            StackError: no solver in the stack, no pipeline, no prompts, a bad seed or time.
        """
        pipeline_for(what, stack.pipe)
        solver = next((p for p in stack.passes if isinstance(p, Solver)), None)
        if solver is None:
            raise StackError(f"{what}: expected a stack with a solver, add .solver(steps=6)")
        texts = some_prompts(prompts)
        checked(Seed, seed, "seed")
        checked(NotNegative | None, budget, "budget")
        over = math.inf if budget is None else time.monotonic() + budget
        rest = [p for p in stack.passes if not isinstance(p, Solver | Cache)]
        # Sparse attention keeps maps and orders from step to step: it is given all of them.
        runs = PrefixRuns(whole=any(isinstance(p, SparseAttention) for p in rest))
        return cls(stack, solver, rest, texts, seed, PipelineCalls(stack.pipe, call), over, runs)

    def all_steps(self, bar: ProgressLine, known: Sequence[torch.Tensor] | None) -> tuple[list[torch.Tensor], Facts]:
        """The pictures of all steps on the host, one per prompt, drawn where they are not known; and the facts of the
        stack below the solver.

        Raises:
            StackError: other pictures are known than one of each prompt.
        """
        if known is not None and not (len(known) == len(self.prompts) and all(map(torch.is_tensor, known))):
            raise StackError(f"wanted: expected a picture of each of {len(self.prompts)} prompts, got {shown(known)}")
        with self.stack.beside(self.rest) as other:
            steps = other.facts.steps
            drawn: Iterable[torch.Tensor] = known or ()
            if known is None:
                drawn = self.calls.per_prompt(other, self.prompts, self.seed, steps, bar, "all steps, prompt")
            return [picture.cpu() for picture in drawn], other.plan.facts_after

    def with_solver(self, solver: Solver) -> AbstractContextManager[StackLike]:
        """A stack beside with this solver, for `draw`."""
        return self.stack.beside([*self.rest, solver, Observe(partial(answer_calls, visit=self.runs.visit))])

    def draw(self, stack: StackLike, solver: Solver, number: int, steps: int) -> torch.Tensor:
        """The picture of prompt `number` on the host, with this solver for that of a stack of `with_solver`."""
        stack.replace(solver)
        self.runs.begin(number)
        return self.calls.make(stack, [self.prompts[number]], self.seed + number, steps).cpu()


class PrefixRuns:
    """The calls of one run per prompt, on the host: another run calls the model only from where it leaves that one.

    A place or a weight of a late step changes no call before it, so that trying one takes half of a run or less.

    Args:
        whole: let all calls through.
    """

    def __init__(self, whole: bool = False):
        self.whole = whole
        self._kept: dict[int, list[_Made]] = {}
        self._last: dict[int, list[_Made]] = {}
        self._run: list[_Made] = []
        self._ahead: Iterator[_Made] = iter(())

    def begin(self, number: int) -> None:
        """A run of prompt `number` comes."""
        self._run = self._last[number] = []
        self._ahead = iter(self._kept.get(number, ()))

    def keep(self) -> None:
        """From now on other runs are compared with the last of every prompt."""
        self._kept = dict(self._last)

    def visit(self, call: DenoiserCall, run: Run, step: StepContext) -> Any:
        """Answer a call as it was answered in the run that is kept, or make it."""
        if self.whole:
            return run(call)
        latent = call.latent.cpu()
        known = next(self._ahead, None)
        if known is not None and torch.equal(known.latent, latent):
            self._run.append(known)
            return call.answer(known.output.to(call.latent.device))
        self._ahead = iter(())
        result = run(call)
        self._run.append(_Made(latent.clone(), call.made(result).to("cpu", copy=True)))
        return result


@dataclass(frozen=True)
class _Made:
    """One call that was made: the latent it was given, and what came of it."""

    latent: torch.Tensor
    output: torch.Tensor
