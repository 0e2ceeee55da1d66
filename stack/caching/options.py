"""Flat option names, as `cache(...)` and recipes have them, and where each belongs in a policy. Old names are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from ..core.errors import StackError, nearest

OLD_KEYS = {"lean": "schedule_power", "carry": "approximation"}
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
        known = OLD_VALUES.get(key, {})
        found[key] = known.get(value, value) if isinstance(value, str) else value
    return found


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
    return nearest("option of the cache", key, {*known, *owners})
