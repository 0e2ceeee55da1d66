"""Flat option names, as `cache(...)` and recipes have them, and where each belongs in a policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from ..core.errors import StackError, nearest
from ..core.validate import check_fields

NEAREST = 4  # names listed in the error where none is like the given one


@dataclass(frozen=True)
class Options:
    """A part of a cache: its values are checked against their annotations when it is made.

    Raises:
        StackError: a value of another type, or outside its range.
    """

    def __post_init__(self) -> None:
        check_fields(self, "cache")
        self.check_values()

    def check_values(self) -> None:
        """Check what annotations cannot say.

        Raises:
            StackError: a value outside its range, or values that do not go together.
        """


def field_names(part: Any) -> list[str]:
    """Names of a dataclass's fields."""
    return [f.name for f in fields(part)]


def unknown(key: str, now: str, owners: Mapping[str, list[str]], known: Iterable[str]) -> StackError:
    """The error for an option that a cache does not have.

    Args:
        now: site, gate and split of the cache, in words.
        owners: option to the parts that have it, in words.
        known: options of the cache as it is.
    """
    if key in owners:
        return StackError(f"{key!r} is an option of {', '.join(owners[key])}: this cache has {now}")
    every = sorted({*known, *owners})
    if get_close_matches(key, every, 1):
        return nearest("option of the cache", key, every)
    like = ", ".join(map(repr, get_close_matches(key, every, NEAREST, 0.0)))
    return StackError(f"unknown option of the cache {key!r}: the nearest are {like}")
