"""When a stack's plan is made anew: for a call of other steps, and where what facts rest on has changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .core.errors import StackError
from .core.facts import Facts
from .core.passes import Pass
from .core.plan import Plan, make_plan
from .model_facts import facts_of, facts_rest_on, sampler_of
from .runtime.mounted import Mounted
from .runtime.target import Target

REPLACED = (
    "pipe.transformer is no longer the model that carries this stack: undo() takes it off that one, "
    "a new Stack(pipe) goes on the new one"
)
WRAPPERS = "forwards of its modules"  # somebody has put others in the place of a pass's wrappers, or around them
SCHEDULER = "scheduler"  # the one entry of `facts_rest_on` that is no property of the model


@dataclass
class Planner:
    """Makes the plans of one stack, and keeps the one that is on its model.

    Args:
        steps: denoiser steps to plan for ahead of a call.
        strict: raise where a plan would repair.

    Attributes:
        installed: the plan whose passes are on the model; None where there is none.
    """

    steps: int
    strict: bool
    installed: Plan | None = None
    _seen: dict[str, Any] = field(default_factory=dict)

    def read(self, target: Target) -> None:
        """Read the facts of a model without passes on it."""
        target.facts = facts_of(target.denoiser, target.wiring, target.pipe, self.steps)

    def plan(self, facts: Facts, passes: Sequence[Pass]) -> Plan:
        """The plan for these facts.

        Raises:
            StackError: a pass cannot work on this model.
        """
        return make_plan(facts, passes, self.strict)

    def of_call(self, target: Target, passes: Sequence[Pass], steps: int) -> Plan:
        """The plan for a call of as many steps, behind the scheduler that the pipeline has now; 0 where not known.

        Raises:
            StackError: a pass cannot work with so many steps, or behind this scheduler.
        """
        target.facts = replace(target.facts, sampler=sampler_of(target.wiring, target.pipe))
        ahead = self.plan(target.facts, passes)
        if steps in (0, ahead.facts_after.steps):
            return ahead
        return self.plan(replace(target.facts, steps=steps, called=steps), passes)

    def carry(self, mounted: Mounted, plan: Plan) -> None:
        """Put this plan's passes on the model; none of them if that is interrupted."""
        try:
            mounted.sync(plan.stages)
            self.installed, self._seen = plan, facts_rest_on(mounted.target.denoiser, mounted.target.pipe)
        except StackError:
            raise  # refused before anything was changed, or taken off already
        except BaseException:
            mounted.take_off()
            raise

    def refresh(self, mounted: Mounted) -> list[str]:
        """Take off what rests on facts that have changed, and read those again; returns what has changed, in words.

        Raises:
            StackError: a final layer would have to go.
        """
        changed, intact = self.changes(mounted.target), mounted.layers.intact()
        if intact < len(mounted.layers):
            mounted.layers.check(intact)
            mounted.layers.shrink(intact)
            changed.append(WRAPPERS)
        if any(name not in (SCHEDULER, WRAPPERS) for name in changed):
            mounted.layers.check(0)
            mounted.layers.shrink(0)
            self.read(mounted.target)
        return changed

    def anew(self, mounted: Mounted, passes: Sequence[Pass]) -> Plan:
        """The plan of other passes for the model as it is now, ahead of calls.

        Raises:
            StackError: a pass cannot work on it.
        """
        self.refresh(mounted)
        return self.plan(mounted.target.facts, passes)

    def prepare(self, mounted: Mounted, passes: Sequence[Pass], steps: int) -> list[str]:
        """A pipeline call of as many denoiser steps begins: what has changed is read again, and planned for.

        Returns what has changed, in words.

        Raises:
            StackError: a pass cannot work on the model as it is now, or with so many steps.
        """
        changed = self.refresh(mounted)
        if not changed and self.fits(steps):
            return []
        self.carry(mounted, self.of_call(mounted.target, passes, steps))
        return [f"changed since the stack was put on, and planned for anew: {', '.join(changed)}"] if changed else []

    def fits(self, steps: int) -> bool:
        """Whether the passes on the model were planned for a call of `steps` steps; 0 where that is not known."""
        return self.installed is not None and steps in (0, self.installed.facts_after.steps)

    def changes(self, target: Target) -> list[str]:
        """What facts rest on and has changed since the plan was put on, by name."""
        return [n for n, value in facts_rest_on(target.denoiser, target.pipe).items() if value != self._seen[n]]
