"""What a measurement may do with a stack: look at it, run it, exchange its passes. `stack.Stack` fulfils it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from torch import nn

from ..core.facts import Facts
from ..core.passes import Pass
from ..core.plan import Plan
from ..models.layout import Wiring
from .report import Report
from .step_clock import Clock


class StackLike(Protocol):
    """A stack of passes over a pipeline or a bare denoiser.

    Attributes:
        max_error: relative error of the final latents that all passes together may make; 0 for none.
        analyses: measurements of this stack, by kind.
        lock: held by whoever runs or changes the stack.
    """

    max_error: float
    analyses: dict[str, Any]

    @property
    def lock(self) -> AbstractContextManager[Any]: ...

    @property
    def plan(self) -> Plan: ...

    @property
    def passes(self) -> tuple[Pass, ...]: ...

    @property
    def facts(self) -> Facts: ...

    @property
    def pipe(self) -> Any: ...

    @property
    def denoiser(self) -> nn.Module: ...

    @property
    def wiring(self) -> Wiring: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def sigmas(self) -> Sequence[float]: ...

    @property
    def applied(self) -> bool: ...

    def beside(self, passes: Sequence[Pass]) -> AbstractContextManager[StackLike]: ...

    def apply(self) -> Any: ...

    def undo(self, stage: str | None = None) -> Any: ...

    def replace(self, new: Pass) -> Any: ...

    def report(self) -> Report: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


AnyStack = TypeVar("AnyStack", bound=StackLike)
