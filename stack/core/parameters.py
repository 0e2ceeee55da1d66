"""What a method of a class takes, where subclasses hand on what they do not name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from inspect import Parameter


def parameters_of(cls: type, method: str) -> dict[str, Parameter]:
    """Parameters by name, without `self`: those of the class's own method, and of its parents' while each of them takes
    any names. Of one name the first in this order counts."""
    found: dict[str, Parameter] = {}
    for parameters in reached(cls, method):
        named = [p for p in parameters if p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
        found = {**{p.name: p for p in named}, **found}
    return found


def reached(cls: type, method: str) -> Iterator[list[Parameter]]:
    """The parameters of the class's own method, then of its parents' while each of them takes any names."""
    for kind in cls.__mro__:
        if method in vars(kind):
            parameters = list(inspect.signature(getattr(kind, method)).parameters.values())[1:]
            yield parameters
            if not takes_any(parameters):
                return


def takes_any(parameters: Iterable[Parameter]) -> bool:
    """Whether arguments of any name are taken."""
    return any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
