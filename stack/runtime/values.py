"""Arguments and settings of any kind: whether one is unchanged, judged by identity first and by content then."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .fingerprint import Content, version_of

PLAIN = (str, int, float, bool, type(None))


def flat(values: Iterable[Any]) -> list[Any]:
    """The objects inside nested lists, tuples and dictionaries, in order, with the kind and length of each of those."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            found += (type(value), len(value), *flat(value))
        elif isinstance(value, dict):
            found += (dict, len(value), *value, *flat(value.values()))
        else:
            found.append(value)
    return found


def settled(value: Any) -> Hashable:
    """What a value is, to be compared with what it is later: tensors and arrays by content, unknown objects as such."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype, value.device, Content([value])
    if isinstance(value, (list, tuple)):
        return type(value), *map(settled, value)
    if isinstance(value, dict):
        return dict, *((key, settled(value[key])) for key in sorted(value, key=repr))
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    if isinstance(value, PLAIN):
        return type(value), value
    return value if type(value).__hash__ is not None else Itself(value)


class Itself:
    """An object that has no value to compare: it is equal to nothing but itself."""

    def __init__(self, held: Any):
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and self.held is other.held

    def __hash__(self) -> int:
        return id(self.held)


@dataclass(frozen=True)
class Seen:
    """A value as it was found. It holds no tensor: those are looked for by weak references.

    Attributes:
        objects: what `flat` finds in it; of tensors weak references, with their versions.
        settled: see `settled`.
        ref, version: of a tensor that torch counts the changes of; None and 0 of anything else.
        mutable: whether something in it may change without a trace: numpy arrays, and inference tensors, of which
            torch counts no changes.
    """

    objects: tuple[Any, ...]
    settled: Hashable
    mutable: bool
    ref: weakref.ref[torch.Tensor] | None = None
    version: int = 0

    @classmethod
    def of(cls, value: Any) -> Seen:
        """A value as it is now."""
        objects = flat((value,))
        traceless = any(isinstance(x, np.ndarray) or _is_inference(x) for x in objects)
        alone = isinstance(value, torch.Tensor) and not traceless
        ref, version = (weakref.ref(value), value._version) if alone else (None, 0)
        return cls(tuple(map(_mark, objects)), settled(value), traceless, ref, version)

    def still(self, value: Any) -> bool:
        """Whether this value is made of the very same objects, unchanged; False where that cannot be known."""
        if self.mutable:
            return False
        objects = (value,) if isinstance(value, torch.Tensor) else flat((value,))
        return len(objects) == len(self.objects) and all(map(_is_still, self.objects, objects))


def _is_inference(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_inference()


def _mark(value: Any) -> Any:
    return (weakref.ref(value), version_of(value)) if isinstance(value, torch.Tensor) else value


def _is_still(mark: Any, value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        known = type(mark) is tuple and mark[0]() is value
        return known and not value.is_inference() and mark[1] == value._version
    # Numbers and words are made anew for every call by some callers.
    return mark is value or (type(mark) is type(value) and isinstance(value, PLAIN) and mark == value)
