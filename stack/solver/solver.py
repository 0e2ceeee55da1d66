"""The solver pass: fewer, second-order steps in place of those of the pipeline's own scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import annotated_types as limits

from ..compat.calibrated_for import DECISIVE, differences
from ..compat.rules.solver import SOLVER_NEEDS_PIPELINE, SOLVER_SAMPLER, SOLVER_UNDER_ADAPTER
from ..core.errors import StackError
from ..core.facts import Facts
from ..core.installer import Installer
from ..core.passes import Applied, Finding, TransformedCall, field_options
from ..core.progress import counted
from ..core.validate import RunSteps, Steps, check_fields
from ..runtime.call_arguments import STEPS
from ..runtime.target import Target
from .numbers import recent
from .places import Places
from .scheduler import PlacedSolver

Correction = Annotated[float, limits.Ge(-10), limits.Le(10)]
EXCHANGED = "the pipeline's scheduler is no longer the solver's: expected it to stay; undo() the stack, set it, apply()"
UNSAVED = "save_pretrained() would write the solver's scheduler: undo() the stack first; a recipe keeps it, to_recipe()"


@dataclass(frozen=True)
class Solver:
    """The denoiser runs at a few of the scheduler's steps; the result is close to that of all of them.

    Calls keep their number of steps, of which the solver takes some. A call that names no number, or the solver's own,
    has as many steps as the stack is planned for.

    Attributes:
        steps: number of steps at which the denoiser runs; by default as many as `places`.
        places: which of the scheduler's steps these are, rising from 0; empty for those that are best for Gaussian data
            at the scheduler's noise levels. With another number of steps each place keeps its noise level.
        of: how many steps of the scheduler the places are of; 0 for as many as the stack is planned for.
        order: 1 holds each estimate of the clean sample until the next, 2 interpolates linearly.
        corrections: of the weights of its steps, fitted to finished pictures (`Stack.fit_solver`): of each step what is
            added to its factor on the latent, and to those on its last three estimates. They need `places` and `of`.
        calibrated_for: which stack they were fitted on, see `stack.compat.calibrated_for`. On another one, or with
            another number of steps, they are left out.
        latent: numbers in one sample's latent that they were fitted on, 0 where not known. In calls of more than a
            tenth more or fewer they are left out.

    Raises:
        StackError: neither steps nor places, numbers of them that differ, places that do not rise from 0, or
            corrections that are not one row per step.
    """

    steps: RunSteps | None = None
    places: tuple[Steps, ...] = ()
    of: Steps = 0
    order: Annotated[int, limits.Ge(1), limits.Le(2)] = 2
    corrections: tuple[tuple[Correction, ...], ...] = field(default=(), repr=False)
    calibrated_for: tuple[str, ...] = field(default=(), repr=False)
    latent: Annotated[int, limits.Ge(0)] = field(default=0, repr=False)
    stage: ClassVar[str] = "solver"

    def __post_init__(self) -> None:
        check_fields(self, self.stage)
        if not self.steps and not self.places:
            raise StackError("solver: expected a number of steps, got none; try solver(steps=6)")
        if self.places and self.places != tuple(sorted({0, *self.places})):
            raise StackError(f"solver.places must rise from 0, got {list(self.places)}")
        if self.places and self.steps not in (None, len(self.places)):
            raise StackError(f"solver has {self.steps} steps and {len(self.places)} places: expected as many, or one")
        wanted = [1 + len(recent(at)) for at in range(len(self.places))]
        if self.corrections and ((got := list(map(len, self.corrections))) != wanted or not self.of):
            given = f"rows of {got} numbers" + ("" if self.of else " without of")
            raise StackError(f"solver.corrections: expected places, of, and rows of {wanted} numbers, got {given}")

    @property
    def count(self) -> int:
        """Steps that are taken of a ladder that has as many."""
        return self.steps or len(self.places)

    def without_weights(self) -> Solver:
        """With second-order weights."""
        return replace(self, corrections=(), calibrated_for=(), latent=0)

    def options(self) -> dict[str, Any]:
        """The arguments that make an equal pass, those at their defaults left out."""
        lists = {"corrections": [list(row) for row in self.corrections]} if self.corrections else {}
        return {**field_options(self), **lists}

    def places_for(self, facts: Facts) -> Places:
        """The places on the ladder of any call, of a stack planned for these facts."""
        ladder = facts.levels if len(facts.levels) == facts.steps else ()
        of = self.of or facts.steps
        found_on = ladder if of == facts.steps else ()
        return Places(self.count, self.order, self.places, found_on, of, self.corrections, self.latent)

    def describe(self, facts: Facts) -> list[str]:
        at = self.places_for(facts).on(facts.levels, facts.steps)
        kind = "second-order" if self.order == 2 else "first-order"
        where = "as asked" if self.places else "best for Gaussian data at the scheduler's noise levels"
        fitted = ["weights of the steps: fitted to finished pictures"] if self.corrections else []
        return [
            f"{counted(len(at), f'{kind} step')} in place of {facts.steps}, {facts.steps / len(at):.2f}x fewer",
            f"at steps {' '.join(map(str, at))} of the scheduler's own, {where}",
            *fitted,
        ]

    def check(self, facts: Facts) -> list[Finding]:
        found = []
        if self.corrections and (changed := self.fitted_elsewhere(facts)):
            what, repair = (
                f"its weights were fitted on another stack: {changed}",
                "second-order weights; fit_solver() again",
            )
            return [Finding(self.stage, what, repair=repair, replacement=self.without_weights())]
        if not facts.pipeline:
            what = "a bare denoiser has no scheduler to take steps of: expected its pipeline"
            found.append(Finding.of(SOLVER_NEEDS_PIPELINE, self.stage, what, fatal=True))
        elif facts.sampler:
            found.append(Finding.of(SOLVER_SAMPLER, self.stage, facts.sampler, fatal=True))
        if facts.distilled:
            what = f"{facts.distilled} is made for its own {counted(facts.steps, 'step')}: some are left out"
            found.append(Finding.of(SOLVER_UNDER_ADAPTER, self.stage, what, note=True))
        if self.places and self.places[-1] >= (self.of or facts.steps) and not facts.called:
            within = f"places lie within 0..{(self.of or facts.steps) - 1}, got {self.places[-1]}"
            what = f"{within}: say how many steps they are of, such as of=50"
            found.append(Finding(self.stage, what, fatal=True))
        elif self.count >= facts.steps:
            what = f"{counted(self.count, 'step')} of a ladder of {facts.steps}: 0 are left out"
            found.append(Finding(self.stage, what, note=True))
        return found

    def fitted_elsewhere(self, facts: Facts) -> str:
        """What has changed since the weights were fitted, or ""."""
        # A call of other steps than planned for is no other stack: the solver sees to it when it makes its schedule.
        steps = [f"steps {self.of}, now {facts.steps}"] if self.of != facts.steps and not facts.called else []
        return "; ".join([*steps, *differences(self.calibrated_for, facts, DECISIVE)])

    def facts_after(self, facts: Facts) -> Facts:
        """Its steps and their noise levels."""
        at = self.places_for(facts).on(facts.levels, facts.steps)
        levels = tuple(facts.levels[i] for i in at) if len(facts.levels) == facts.steps else ()
        return replace(facts, steps=len(at), levels=levels, ladder=facts.steps)

    def apply(self, target: Target, install: Installer) -> Applied:
        """Put the solver in the place of the pipeline's scheduler."""
        facts, pipe = target.now, target.pipe
        assert pipe is not None  # checked
        places = self.places_for(facts)
        solver: PlacedSolver = self._solver(target, pipe.scheduler, places)
        install.set_attribute(pipe, "scheduler", solver)
        install.wrap_call(pipe, "save_pretrained", _refusing)

        def call(given: Mapping[str, Any]) -> TransformedCall:
            if pipe.scheduler is not solver:
                raise StackError(EXCHANGED)
            return on_the_ladder(given, self.count, facts.steps)

        def report() -> dict[str, Any]:
            other = (
                self.corrections and solver.places and places.fitted_elsewhere(len(solver.own.timesteps), solver.latent)
            )
            if other:
                fitted = f"weights fitted on {other}"
                target.journal.warn(f"{self.stage}: {fitted}: second-order ones are used; fit_solver() again")
            return {"places": list(solver.places)}

        return Applied(self.describe(facts)[0], call=call, report=report)

    def _solver(self, target: Target, own: Any, places: Places) -> PlacedSolver:
        """In place of the pipeline's own scheduler. A call whose facts have changed has its passes put on anew at its
        first step, when it has asked for a schedule already: the solver that made it goes on."""
        before: PlacedSolver | None = target.schedulers.get(own)
        if before is None or not target.in_call or not before.running:
            before = PlacedSolver(own, places.plan, target.now.image_tokens)
            target.schedulers[own] = before
        return before


def on_the_ladder(given: Mapping[str, Any], count: int, ladder: int) -> TransformedCall:
    """A call that asks for the ladder that is planned for, where it names no number of steps or the solver's own."""
    arguments = dict(given)
    listed = any(arguments.get(name) is not None for name in ("sigmas", "timesteps"))
    if not listed and arguments.get(STEPS) in (None, count):
        arguments[STEPS] = ladder
    return TransformedCall(arguments)


def _refusing(save: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        raise StackError(UNSAVED)

    return called
