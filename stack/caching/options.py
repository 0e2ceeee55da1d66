"""Flat option names, as `cache(...)` and recipes have them, and where each belongs in a policy. Old names are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from ..core.errors import StackError, nearest
from ..core.validate import NotNegative, check_fields, checked

NEAREST = 4  # names listed in the error where none is like the given one
OLD_KEYS = {"lean": "spread", "schedule_power": "spread", "carry": "approximation"}
OLD_VALUES: dict[str, dict[str, str]] = {
    "site": {
        "blocks": "per-block",
        "modules": "per-module",
        "related": "relational",
        "denoiser": "whole-model",
        "clean": "x0",
    },
    "approximation": {"map": "static", "moved": "delta"},
}


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


def modern(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options under the names of today.

    Raises:
        StackError: one is given under both names.
    """
    found: dict[str, Any] = {}
    for given, value in options.items():
        key = OLD_KEYS.get(given, given)
        if key in found:
            old = next(name for name, new in OLD_KEYS.items() if new == key)
            raise StackError(f"{old!r} is the old name of {key!r}: expected one of them, got both")
        if key == "spread" and given != key:
            value = _spread_of(value, given)
        known = OLD_VALUES.get(key, {})
        found[key] = known.get(value, value) if isinstance(value, str) else value
    return found


def _spread_of(power: Any, name: str) -> str:
    """What took the place of a power by which full steps were dense near the data."""
    return "by-noise" if checked(NotNegative, power, f"cache.{name}") else "even"


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


def by_old_name(error: StackError, options: Mapping[str, Any]) -> StackError:
    """The same error for whoever gave an option by its old name."""
    old = [f"{name!r} is {OLD_KEYS[name]!r} today" for name in options if OLD_KEYS.get(name, "\0") in str(error)]
    return StackError(f"{', '.join(old)}: {error}") if old else error
