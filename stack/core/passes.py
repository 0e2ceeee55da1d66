"""What a pass is: a frozen description that checks facts, predicts facts, and installs itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

from .errors import StackError, choose
from .facts import Facts
from .installer import Installer
from .rule import Rule
from .validate import shown

# Stages in the order they run: a registry, see `register_stage`.
ORDER = ["distill", "quantize", "adapter", "solver", "sage_attn", "sparse_attn", "dense_attn", "compile", "cache"]


def register_stage(stage: str, before: str) -> None:
    """Give a stage its place, in front of another.

    Raises:
        StackError: there is no stage `before`, or `stage` has its place already.
    """
    if before not in ORDER:
        raise choose("stage", before, ORDER)
    if stage in ORDER:
        raise StackError(f"stage {stage!r} has its place already: {', '.join(ORDER)}")
    ORDER.insert(ORDER.index(before), stage)


@dataclass(frozen=True)
class Finding:
    """One thing the plan noticed about a pass.

    Attributes:
        stage: the pass it is about.
        what: what clashes, in one line.
        why: the measured reason, with its figure.
        repair: what the plan does about it by default, in words; empty when nothing can be done.
        replacement: the pass to use instead; None drops the pass. Read only when `repair` is not empty and nothing is
            added.
        adds: a pass of a later stage that has to be there as well. The plan adds it; where that stage was asked for,
            the finding is void.
        instead: the pass that turns that stage off, for users who do not want it.
        fatal: no repair exists; planning raises.
        note: for the reader only, nothing changes.
        rule: name of the rule it is of, see `stack.compat.rules`; "" for a setting that is merely invalid.
    """

    stage: str
    what: str
    why: str = ""
    repair: str = ""
    replacement: Pass | None = None
    adds: Pass | None = None
    instead: Pass | None = None
    fatal: bool = False
    note: bool = False
    rule: str = ""

    @classmethod
    def of(cls, rule: Rule, stage: str, what: str, **more: Any) -> Finding:
        """A clash that a rule knows: the reason is the rule's own number. `more` are the other attributes."""
        return cls(stage, what, rule.why, rule=rule.name, **more)

    def __str__(self) -> str:
        """One line: what, why, what to try, which rule."""
        return self.line("try")

    def line(self, remedy: str) -> str:
        """One line: what, why, which rule, and the repair: "try" where it is up to the reader, "done" by a plan."""
        because = f" ({self.why})" if self.why else ""
        hint = f"; {remedy}: {self.repair}" if self.repair else ""
        return f"{self.stage}: {self.what}{because}{hint}{self.tag}"

    @property
    def tag(self) -> str:
        """The rule's name in brackets, or ""."""
        return f" (rule {self.rule})" if self.rule else ""


@dataclass
class TransformedCall:
    """A call as it will be made.

    Attributes:
        arguments: of the pipeline's call.
        contradictions: requests that cannot be met, each with what is done instead.
    """

    arguments: dict[str, Any]
    contradictions: list[str] = field(default_factory=list)

    def contradict(self, rule: Rule, text: str) -> None:
        """Note what cannot be had, and the rule it goes against."""
        self.contradictions.append(rule.annotate(text))


CallTransform = Callable[[Mapping[str, Any]], TransformedCall]


@dataclass
class Applied:
    """A pass on a model: what it did, and what it can report afterwards.

    Attributes:
        summary: one line, with counts ("24 of 30 linears converted"). A count of zero is given too.
        report: figures of the last request, by name.
        reset: lets go of what is kept between calls; called when a call or a request breaks off.
        call: a pipeline call's arguments, by name, to those it is made with and what had to be put right; None where
            the pass has no say in them.
        warnings: shown in every report.
    """

    summary: str
    report: Callable[[], dict[str, Any]] = dict
    reset: Callable[[], None] = lambda: None
    details: dict[str, Any] = field(default_factory=dict)
    call: CallTransform | None = None
    warnings: list[str] = field(default_factory=list)


def field_options(made: Any) -> dict[str, Any]:
    """A frozen dataclass's arguments, those at their defaults left out."""
    given = [f for f in fields(made) if f.init]
    return {f.name: value for f in given if (value := vars(made)[f.name]) != f.default}


class Pass(Protocol):
    """A stage of the stack. Implementations are frozen dataclasses; `stack.passes` names them."""

    stage: ClassVar[str]

    def describe(self, facts: Facts) -> list[str]:
        """Lines for `explain()`: what it will do to a model with these facts, and what it costs."""
        ...

    def options(self) -> dict[str, Any]:
        """The arguments that make an equal pass, for a recipe; those at their defaults are left out.

        Raises:
            StackError: it holds something that a recipe cannot.
        """
        ...

    def check(self, facts: Facts) -> list[Finding]:
        """What speaks against it, each with its repair. Pure."""
        ...

    def facts_after(self, facts: Facts) -> Facts:
        """The facts once it is applied. Pure."""
        ...

    def apply(self, target: Any, install: Installer) -> Applied:
        """Do it to a `stack.runtime.target.Target`. Every change goes through `install`, which can take it back."""
        ...


@runtime_checkable
class _Staged(Protocol):
    stage: str


def stage_of(given: Any) -> str:
    """The stage of a pass.

    Raises:
        StackError: something else.
    """
    if isinstance(given, type) or not isinstance(given, _Staged):
        hint = "try quantize(...), cache(...), or Cache('svd')"
        raise StackError(f"expected a pass, one object with its options, got {shown(given)}; {hint}")
    return given.stage
