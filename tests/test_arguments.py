"""Names of arguments are those that `inspect.Signature.bind` gives, and calls made from them are the same calls."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.core.arguments import Arguments


def plain(a: int, b: int = 2, *, c: int = 3) -> tuple[Any, ...]:
    return a, b, c


def open_ended(a: int, b: int = 2, *rest: int, c: int = 3, **others: int) -> tuple[Any, ...]:
    return a, b, rest, c, others


@given(st.sampled_from([plain, open_ended]), st.integers(1, 4), st.booleans(), st.booleans())
def test_as_bind(function: Any, positional: int, keyword: bool, unknown: bool) -> None:
    args = tuple(range(10, 10 + positional))
    kwargs = ({"c": 7} if keyword else {}) | ({"d": 8} if unknown else {})
    arguments = Arguments(function)
    try:
        expected = dict(inspect.signature(function).bind(*args, **kwargs).arguments)
    except TypeError:
        with pytest.raises(TypeError):
            arguments.call(function, arguments.named(args, kwargs))
        return
    named = arguments.named(args, kwargs)
    assert named == expected
    assert arguments.call(function, named) == function(*args, **kwargs)
