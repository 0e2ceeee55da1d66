"""Measurements of a stack, kept as long as what they depend on is the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar


class Depends(Protocol):
    """A measurement that knows what it depends on."""

    def holds_for(self, depends: Mapping[str, str]) -> bool:
        """Whether it is still true under these facts."""
        ...


Result = TypeVar("Result", bound=Depends)


class MemoizedAnalysis(Generic[Result]):
    """At most one measurement of a kind; the first look under other facts drops it."""

    def __init__(self) -> None:
        self._result: Result | None = None

    def keep(self, result: Result) -> Result:
        """Keep it in the place of the one before."""
        self._result = result
        return result

    def current(self, depends: Mapping[str, str]) -> Result | None:
        """What is kept, if it holds under these facts."""
        if self._result is not None and not self._result.holds_for(depends):
            self._result = None
        return self._result
