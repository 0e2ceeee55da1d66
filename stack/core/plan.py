"""From facts and passes to a plan: order, findings, repairs. Pure; nothing here touches a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import StackError
from .facts import Facts
from .passes import ORDER, Finding, Pass, stage_of
from .progress import counted


@dataclass(frozen=True)
class Planned:
    """One stage of a plan: the pass as it will run, and the facts it meets."""

    run: Pass
    before: Facts
    after: Facts


@dataclass(frozen=True)
class Plan:
    """What will be done, in order, and what was noticed on the way.

    Attributes:
        facts: of the untouched model.
        stages: in running order; passes that a repair dropped are missing, those it added are there.
        findings: everything the passes reported, repaired or not.
    """

    facts: Facts
    stages: tuple[Planned, ...]
    findings: tuple[Finding, ...]

    @property
    def facts_after(self) -> Facts:
        """Facts of the finished stack."""
        return self.stages[-1].after if self.stages else self.facts

    def passes(self) -> tuple[Pass, ...]:
        """The passes that will run, in order."""
        return tuple(stage.run for stage in self.stages)

    @property
    def added(self) -> dict[str, Pass | None]:
        """Stages that a repair added, each with the pass that leaves it out."""
        return {finding.adds.stage: finding.instead for finding in self.findings if finding.adds}


def in_order(passes: Sequence[Pass]) -> list[Pass]:
    """Sort by stage, whatever order they were asked in: distill, quantize, adapter, solver, 8-bit, sparse and dense
    attention, compile, cache.

    Weights change first (an adapter is fused before it is rounded), then which steps there are, how they are computed,
    and what is skipped: so that a cache is always calibrated on, and stamped with, the numbers it will meet.

    Raises:
        StackError: a stage is given twice, or something that is no pass.
    """
    stages = [stage_of(p) for p in passes]
    for stage in stages:
        if stages.count(stage) > 1:
            raise StackError(
                f"stage {stage!r} is given {stages.count(stage)} times: expected at most once; keep one of them"
            )
    return sorted(passes, key=lambda p: ORDER.index(p.stage))


def make_plan(facts: Facts, passes: Sequence[Pass], strict: bool = False) -> Plan:
    """Order the passes, let each check the facts it will meet, and apply the repairs it offers.

    Raises:
        StackError: a pass cannot work on this model, or `strict` and something had to be repaired. All reasons at once.
    """
    current, stages, findings, waiting = facts, [], [], in_order(passes)
    there = {p.stage for p in waiting}
    while waiting:
        wanted = waiting.pop(0)
        found = [f for f in wanted.check(current) if f.adds is None or f.adds.stage not in there]
        findings += found
        effective: Pass | None = wanted
        for finding in found:
            if finding.adds is not None:
                waiting = in_order([*waiting, finding.adds])
                there.add(finding.adds.stage)
            elif finding.repair:
                effective = finding.replacement
        if effective is None or any(finding.fatal for finding in found):
            continue
        after = effective.facts_after(current)
        stages.append(Planned(effective, current, after))
        current = after
    refused = [f for f in findings if f.fatal or (strict and not f.note)]
    if refused:
        raise StackError("; ".join(map(str, refused)))
    return Plan(facts, tuple(stages), tuple(findings))


def _size(facts: Facts) -> str:
    """Width and heads, as far as they are known."""
    width = f"width {facts.width or 'unknown'}, "
    return width + (f"{facts.heads} heads of {facts.head_dim}, " if facts.heads else "")


def explain(plan: Plan) -> str:
    """The plan in words: the model, each stage with its reasons, then what was noticed."""
    f = plan.facts
    after = plan.facts_after
    takes = "taken by the solver" if after.ladder else "as the weights below are made for"
    asked = "" if after.steps == f.steps else f", {takes}; asked for {f.steps}"
    lines = [
        f"{f.family} denoiser: {f.blocks} blocks, {_size(f)}"
        f"{f.image_tokens or 'unknown'} image tokens, {f.dtype} on {f.machine.device} {f.machine.vector}".rstrip(),
        f"planned for {counted(after.steps, 'step')}{asked}",
    ]
    lines += [f"not for this model: {name}: {reason}" for name, reason in f.lacks.items()]
    for number, stage in enumerate(plan.stages, 1):
        first, *rest = stage.run.describe(stage.before)
        lines += [f"{number}. {stage.run.stage}: {first}", *(f"   - {line}" for line in rest)]
    if not plan.stages:
        lines.append("no passes: the model runs as it is")
    for finding in plan.findings:
        mark = "note" if finding.note else "repaired" if finding.repair else "refused"
        lines.append(f"[{mark}] {finding.line('done' if mark == 'repaired' else 'try')}")
    return "\n".join(lines)
