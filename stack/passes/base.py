"""What a pass is: a frozen description that checks facts, predicts facts, and installs itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from threading import RLock
from typing import Any, ClassVar, Protocol

from torch import nn

from ..clock import Clock
from ..compat.rules.rule import Rule
from ..compat.surroundings import Surroundings
from ..distill.call import Correct
from ..entrance import Entrance
from ..facts import Facts
from ..install import Installer
from ..models.grid import RequestGrid
from ..models.wiring import Wiring
from ..report import Journal

ORDER = ("distill", "quantize", "adapter", "sparse_attn", "compile", "cache")


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
        instead: a pass of that stage that leaves it out, for those who do not want it.
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
        because = f" ({self.why})" if self.why else ""
        hint = f"; try: {self.repair}" if self.repair else ""
        return f"{self.stage}: {self.what}{because}{hint}{self.tag}"

    @property
    def tag(self) -> str:
        """The rule's name in brackets, or ""."""
        return f" (rule {self.rule})" if self.rule else ""


@dataclass
class Target:
    """What passes act on.

    Attributes:
        denoiser, wiring, facts: the transformer, how it is wired, and what was true of it before any pass.
        now: what is true of it below the pass that is being applied.
        clock: tells request, branch and step of the current call.
        journal: where passes note what a call turned out to be.
        passes: how often passes have been put on or taken off.
        pipe: the pipeline, if there is one.
        lock: held by whoever runs the model.
        abort: lets go of what passes keep between calls.
        conditions: what the current call's features depend on, for stamps.
        entrance: where calls of the whole denoiser come by.
        grid: what the output stream's tokens lie on in the current request.
    """

    denoiser: nn.Module
    wiring: Wiring
    facts: Facts
    clock: Clock
    journal: Journal
    passes: Callable[[], int]
    pipe: Any | None = None
    lock: AbstractContextManager[Any] = field(default_factory=RLock)
    abort: Callable[[], None] = lambda: None
    entrance: Entrance = field(default_factory=Entrance)
    conditions: Surroundings = field(init=False)
    grid: RequestGrid = field(init=False)

    now: Facts = field(init=False)

    def __post_init__(self) -> None:
        self.now = self.facts
        self.conditions = Surroundings(self.denoiser, self.wiring.conditioning, self.passes)
        self.grid = RequestGrid(partial(self.wiring.grid, self.denoiser), lambda: self.conditions.asked_for)

    def forget(self) -> None:
        """A call or a request has broken off: nothing of it is kept, and whatever comes next is a new request."""
        self.clock.restart()
        self.abort()


@dataclass
class Applied:
    """A pass on a model: what it did, and what it can tell afterwards.

    Attributes:
        summary: one line, with counts ("24 of 30 linears converted"). Nothing silent: zero is said as loudly.
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
    call: Correct | None = None
    warnings: list[str] = field(default_factory=list)


class Pass(Protocol):
    """A stage of the stack. Implementations are frozen dataclasses; one file each in `stack/passes/`."""

    stage: ClassVar[str]

    def describe(self, facts: Facts) -> list[str]:
        """Lines for `explain()`: what it will do to a model with these facts, and what it costs."""
        ...

    def check(self, facts: Facts) -> list[Finding]:
        """What speaks against it, each with its repair. Pure."""
        ...

    def facts_after(self, facts: Facts) -> Facts:
        """The facts once it is applied. Pure."""
        ...

    def apply(self, target: Target, install: Installer) -> Applied:
        """Do it. Every change goes through `install`, which can take it back."""
        ...
