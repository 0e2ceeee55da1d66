"""The denoisers of one pipeline under one stack: what goes on the first one goes on the others, too.

They share a clock and a journal, so that a run is one request whoever is called in it, and nothing else: each has its
own plan, its own passes and its own cache state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

from torch import compiler, nn

from .caching.cache import Cache
from .caching.gate_policies import BudgetPolicy
from .core.errors import StackError
from .core.passes import Pass
from .core.plan import Plan, explain
from .model_facts import facts_of
from .models.denoiser import denoiser_of, other_denoisers
from .models.derive.wiring import wiring_of
from .planner import REPLACED, Planner
from .runtime.layers import Layers
from .runtime.mounted import Mounted
from .runtime.report import Report, unchanging_words
from .runtime.target import Target

T = TypeVar("T")

PIPELINE_WIDE = ("distill", "adapter", "solver")  # stages that change all of a pipeline by themselves
SCHEDULE_FACTS = ("steps", "called", "ladder", "sampler", "schedule", "levels")
ROUNDED_BELOW = (
    "a switchable adapter beside quantize() on a pipeline with two denoisers: it lies on weights that the second one "
    "has not rounded yet; expected a fused one, try distill(name)"
)

SPENT_TWICE = (
    "max_error on a pipeline with two denoisers: what one has spent is not known to the other; expected a cache with "
    "a schedule, such as cache('svd')"
)


@dataclass
class Other:
    """A denoiser that is not its pipeline's first.

    Attributes:
        follows: the first one's plan that its own was made for.
    """

    mounted: Mounted
    planner: Planner
    follows: Plan | None = None

    @property
    def part(self) -> str:
        return self.mounted.target.part

    def plan(self, first: Plan, passes: Sequence[Pass]) -> Plan:
        """Its plan beside that of the first one.

        Raises:
            StackError: a pass cannot work on it.
        """
        target, after = self.mounted.target, first.facts_after
        own = (
            facts_of(target.denoiser, target.wiring, target.pipe, after.steps) if not self.mounted.on else target.facts
        )
        shared: dict[str, Any] = {name: attrgetter(name)(after) for name in SCHEDULE_FACTS}
        target.facts = replace(own, **shared)
        stages = [p.stage for p in passes]
        if "adapter" in stages and "quantize" in stages:
            raise StackError(ROUNDED_BELOW)
        if any(isinstance(p, Cache) and isinstance(p.policy.gate, BudgetPolicy) for p in passes):
            raise StackError(SPENT_TWICE)
        try:
            return self.planner.plan(target.facts, [p for p in passes if p.stage not in PIPELINE_WIDE])
        except StackError as error:
            raise StackError(f"{self.part}: {error}") from None

    def strip(self) -> None:
        """Take its passes off until it is planned for again."""
        self.mounted.layers.shrink(0)
        self.planner.installed, self.follows = None, None


class Denoisers:
    """All denoisers of a stack.

    Args:
        first, planner: the first one with its passes, and who plans them.
    """

    def __init__(self, first: Mounted, planner: Planner):
        self._first, self._planner = first, planner
        pipe = first.target.pipe
        parts = {} if pipe is None else other_denoisers(pipe)
        self.others = [self._other(name, part) for name, part in parts.items()]
        self._entered = 0

    def entered(self, stack: T) -> T:
        """A `with` block begins; returns what it is of."""
        self._entered += 1
        return stack

    def left(self) -> None:
        """A `with` block ends: the outermost one takes the passes off."""
        self._entered -= 1
        if not self._entered:
            self.take_off()

    def _other(self, name: str, denoiser: nn.Module) -> Other:
        first, layers, wiring = self._first.target, Layers(), wiring_of(denoiser)
        target = Target(
            denoiser=denoiser,
            wiring=wiring,
            facts=facts_of(denoiser, wiring, first.pipe, self._planner.steps),
            clock=first.clock,
            journal=first.journal,
            passes=partial(attrgetter("version"), layers),
            pipe=first.pipe,
            owner=first.owner,
            lock=first.lock,
            abort=self.let_go,
            prepare=first.prepare,
            part=name,
        )
        target.taken_over = partial(self.let_go, target)
        return Other(Mounted(target, layers), Planner(self._planner.steps, self._planner.strict))

    @property
    def _all(self) -> list[Mounted]:
        return [self._first, *(other.mounted for other in self.others)]

    def let_go(self, but: Target | None = None) -> None:
        """Drop what passes keep between calls, on all denoisers but one."""
        for mounted in self._all:
            if mounted.target is not but:
                mounted.layers.let_go()

    def replaced(self) -> str:
        """Says that the pipeline has another denoiser by now than one of these; "" where it has not."""
        pipe = self._first.target.pipe
        if pipe is None:
            return ""
        if denoiser_of(pipe) is not self._first.target.denoiser:
            return REPLACED
        now = other_denoisers(pipe)
        gone = next((o.part for o in self.others if now.get(o.part) is not o.mounted.target.denoiser), "")
        new = next((name for name in now if name not in [other.part for other in self.others]), "")
        return REPLACED.replace("pipe.transformer", f"pipe.{gone or new}") if gone or new else ""

    # ---- on and off

    def carry(self, plan: Plan, passes: Sequence[Pass]) -> None:
        """Put this plan's passes on the first denoiser, and their own on the others; on none if that fails.

        Raises:
            StackError: a pass cannot work on one of them: nothing is changed then. Also what a pass raises.
        """
        plans = [other.plan(plan, passes) for other in self.others]
        self._uncover(plan)
        self._planner.carry(self._first, plan)
        self._follow(plan, plans)

    @compiler.disable  # called by a model that the user compiled since: nothing of planning is to be traced
    def prepare(self, passes: Sequence[Pass], steps: int) -> list[str]:
        """A pipeline call begins; see `Planner.prepare`.

        Raises:
            StackError: see there.
        """
        if self.others and self._planner.changes(self._first.target):
            self._strip()
        target = self._first.target
        target.in_call = True
        try:
            notes = self._planner.prepare(self._first, passes, steps)
        finally:
            target.in_call = False
        plan = self._planner.installed
        assert plan is not None
        for other in self.others:
            changed = other.planner.refresh(other.mounted) if other.planner.installed else []
            notes += [f"changed on {other.part} since the stack was put on: {', '.join(changed)}"] if changed else []
            if changed or other.follows is not plan:
                self._follow(plan, [other.plan(plan, passes) for other in self.others])
        return notes

    def _follow(self, plan: Plan, plans: Sequence[Plan]) -> None:
        try:
            for other, own in zip(self.others, plans, strict=True):
                other.planner.carry(other.mounted, own)
                other.follows = plan
        except BaseException:
            self.take_off()
            raise

    def _uncover(self, plan: Plan) -> None:
        """Take off the others' passes if what is below them, an adapter of the whole pipeline, is to change."""
        layers = self._first.layers
        depth = layers.common(plan.stages)
        stages = [*(layer.wanted.stage for layer in layers[depth:]), *(one.run.stage for one in plan.stages[depth:])]
        if set(stages) & set(PIPELINE_WIDE):
            self._strip()

    def _strip(self) -> None:
        for other in self.others:
            other.mounted.layers.check(0)
        for other in self.others:
            other.strip()

    def take_off(self) -> None:
        """Take off whatever is not final, the others' first."""
        try:
            for other in self.others:
                other.mounted.take_off()
                other.planner.installed, other.follows = None, None
        finally:
            self._first.take_off()

    def check(self) -> None:
        """Refuse to take everything off where something is final.

        Raises:
            StackError: see `Layers.check`.
        """
        for mounted in self._all:
            mounted.layers.check(0)

    def freeze(self) -> None:
        """Make everything up to quantization final on all of them.

        Raises:
            StackError: see `Layers.freezable`; nothing is dropped then.
        """
        for mounted in self._all:
            mounted.layers.freezable()
        for mounted in self._all:
            mounted.freeze()

    # ---- looking

    def explained(self, plan: Plan, passes: Sequence[Pass]) -> str:
        """The plan in words; of the others what is not the same."""
        lines = [explain(plan)]
        for other in self.others:
            own = explain(other.plan(plan, passes))
            stages = [p.stage for p in other.plan(plan, passes).passes()]
            wide = [p.stage for p in plan.passes() if p.stage in PIPELINE_WIDE]
            same = not wide and own == lines[0]
            text = f"the same: {', '.join(stages) or 'no passes'}" if same else own
            lines.append(f"also on {other.part}, with a cache state of its own: {text}")
        return "\n".join(lines)

    def report(self, notes: Sequence[str]) -> Report:
        """What happened in the last pipeline call.

        Args:
            notes: what there is to say beside.
        """
        journal, findings, standing = self._first.target.journal, [], []
        passes: dict[str, dict[str, Any]] = {}
        summaries = {}
        for mounted, planner in [(self._first, self._planner), *((o.mounted, o.planner) for o in self.others)]:
            part = mounted.target.part
            on = f" on {part}" if part else ""
            for layer in mounted.layers:
                passes[layer.wanted.stage + on] = layer.applied.report()
                summaries[layer.wanted.stage + on] = layer.applied.summary
                standing += [text + on for text in layer.applied.warnings]
            found = planner.installed.findings if planner.installed else ()
            findings += [f"{f.stage}{on}: {f.what}; {f.repair}{f.tag}" for f in found if f.repair and not f.note]
        steps = journal.records()
        told = [text for text in (self.replaced(), unchanging_words(steps)) if text]
        return Report(
            steps=steps,
            cache_bytes=sum(int(figures.get("bytes", 0)) for figures in passes.values()),
            passes=passes,
            summaries=summaries,
            warnings=[*findings, *told, *standing, *notes, *journal.warnings],
        )
