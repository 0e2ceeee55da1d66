"""The one error users see."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class StackError(ValueError):
    """Something asked for cannot be done. The message says what was expected, what came, and what to try.

    It is one line whatever is quoted in it: a line break becomes a space, what cannot be printed a question mark.
    """

    def __init__(self, message: str):
        line = " ".join(message.split())
        super().__init__("".join(letter if letter.isprintable() else "?" for letter in line))


def choose(what: str, given: object, allowed: list[str] | tuple[str, ...]) -> StackError:
    """The error for a name outside a fixed set, with the one it is most like."""
    like = get_close_matches(given, allowed, 1) if isinstance(given, str) else []
    hint = f"; did you mean {like[0]!r}?" if like else ""
    return StackError(f"unknown {what} {given!r}: expected one of {', '.join(sorted(allowed))}{hint}")


def nearest(what: str, given: str, known: Iterable[str]) -> StackError:
    """The error for a name that may be a slip: the one it is most like, or all of them."""
    every = sorted(known)
    like = get_close_matches(given, every, 1)
    hint = f"did you mean {like[0]!r}?" if like else f"expected one of {', '.join(every)}"
    return StackError(f"unknown {what} {given!r}: {hint}")
