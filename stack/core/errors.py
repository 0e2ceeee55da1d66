"""The one error users see."""

from __future__ import annotations


class StackError(ValueError):
    """Something asked for cannot be done. The message says what was expected, what came, and what to try."""


def choose(what: str, given: object, allowed: list[str] | tuple[str, ...]) -> StackError:
    """The error for a name outside a fixed set."""
    return StackError(f"unknown {what} {given!r}: expected one of {', '.join(sorted(allowed))}")
