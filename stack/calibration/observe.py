"""Measuring runs: a pass in the cache's place through which an observer sees, or answers, calls of a running stack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ..caching.sites.calls import BlockCall, before_blocks
from ..core.facts import Facts
from ..core.installer import Installer
from ..core.passes import Applied, Finding
from ..models.ports import Streams
from ..runtime.call import DenoiserCall
from ..runtime.step import StepContext
from ..runtime.target import Target

Run = Callable[[DenoiserCall], Any]
Visit = Callable[[DenoiserCall, Run, StepContext], Any]
SeeBlock = Callable[[int, Streams, Streams, StepContext], None]
"""Called with a block's number, its input and output streams, and the step."""


@dataclass(frozen=True)
class Observe:
    """A pass of the cache's stage. It is put on for one measuring run and is never planned ahead.

    Attributes:
        put_on: installs the observer; what it returns is reported, None for nothing.
    """

    put_on: Callable[[Target, Installer], Applied | None]
    stage: ClassVar[str] = "cache"

    def describe(self, facts: Facts) -> list[str]:
        return ["measuring run"]

    def options(self) -> dict[str, Any]:
        return {}

    def check(self, facts: Facts) -> list[Finding]:
        return []

    def facts_after(self, facts: Facts) -> Facts:
        return facts

    def apply(self, target: Target, install: Installer) -> Applied:
        return self.put_on(target, install) or Applied("measuring run")


def answer_calls(target: Target, install: Installer, visit: Visit) -> None:
    """Let `visit(call, run, step)` answer every call of the denoiser; `run(call)` makes it."""
    target.chain.add(install, _Visitor(target, visit))


@dataclass(frozen=True)
class _Visitor:
    target: Target
    visit: Visit

    def intercept(self, call: DenoiserCall, proceed: Run) -> Any:
        return self.visit(call, proceed, now(self.target))


def answer_blocks(target: Target, install: Installer, visit: Callable[[int, BlockCall, StepContext], Streams]) -> None:
    """Let `visit(number, call, step)` answer every call of a block; `call.run()` makes it."""

    def asked(number: int, call: BlockCall) -> Streams:
        return visit(number, call, now(target))

    before_blocks(target.denoiser, target.wiring, install, target.clock, asked)


def watching_blocks(see: SeeBlock) -> Observe:
    """Blocks run as they are, and `see` is called after each of them."""

    def visit(number: int, call: BlockCall, context: StepContext) -> Streams:
        out = call.run()
        see(number, call.streams, out, context)
        return out

    return Observe(lambda target, install: answer_blocks(target, install, visit))


def now(target: Target) -> StepContext:
    """The step that is running."""
    assert target.clock.context is not None, "a measuring run goes through a pipeline"
    return target.clock.context
