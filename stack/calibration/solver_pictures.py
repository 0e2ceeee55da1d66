"""What a search of places and a fit of weights share: a stack's solver, and the pictures it is to come close to."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..caching.cache import Cache
from ..core.errors import StackError
from ..core.facts import Facts
from ..core.passes import Pass
from ..core.progress import ProgressLine
from ..core.validate import NotNegative, Seed, checked, some_prompts
from ..runtime.call_arguments import Call
from ..runtime.pipeline_calls import PipelineCalls
from ..runtime.stack_like import StackLike
from ..solver.solver import Solver


@dataclass(frozen=True)
class SolverPictures:
    """The solver of a stack, and how its pictures are drawn.

    Attributes:
        solver: as it is in the stack.
        rest: the other passes, without the cache: a solver's steps are all full.
        prompts: prompt i has the seed `seed` + i.
        over: when the time is over, on the clock of `time.monotonic`.
    """

    stack: StackLike
    solver: Solver
    rest: Sequence[Pass]
    prompts: Sequence[Any]
    seed: int
    calls: PipelineCalls
    over: float

    @classmethod
    def of(
        cls, stack: StackLike, what: str, prompts: Sequence[Any], seed: int, budget: float | None, call: Call | None
    ) -> SolverPictures:
        """The same, of what a caller asks for.

        Args:
            what: is looked for, in errors.
            budget: seconds from now on; None for no limit.

        Raises:
            StackError: no solver in the stack, no prompts, a bad seed or time.
        """
        solver = next((p for p in stack.passes if isinstance(p, Solver)), None)
        if solver is None:
            raise StackError(f"no {what}: expected a stack with a solver, add .solver(steps=6)")
        texts = some_prompts(prompts)
        checked(Seed, seed, "seed")
        checked(NotNegative | None, budget, "budget")
        over = math.inf if budget is None else time.monotonic() + budget
        rest = [p for p in stack.passes if not isinstance(p, Solver | Cache)]
        return cls(stack, solver, rest, texts, seed, PipelineCalls(stack.pipe, call), over)

    def all_steps(self, bar: ProgressLine, known: Sequence[torch.Tensor] | None) -> tuple[list[torch.Tensor], Facts]:
        """The pictures of all steps on the host, one per prompt, drawn where they are not known; and the facts of the
        stack below the solver."""
        with self.stack.beside(self.rest) as other:
            steps = other.facts.steps
            drawn = known or self.calls.per_prompt(other, self.prompts, self.seed, steps, bar, "all steps, prompt")
            return [picture.cpu() for picture in drawn], other.plan.facts_after

    def draw(self, stack: StackLike, solver: Solver, number: int, steps: int) -> torch.Tensor:
        """The picture of prompt `number` on the host, with this solver for that of a stack beside."""
        stack.replace(solver)
        return self.calls.make(stack, [self.prompts[number]], self.seed + number, steps).cpu()
