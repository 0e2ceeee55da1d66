"""Arguments of wrapped calls by name: what `inspect.Signature.bind` gives, at a fiftieth of its cost for most.

Wrappers stand before every block on every step, and a cached step may cost no more than a hundredth of a full one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import Any

_NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


class Arguments:
    """Names the arguments of calls of one function, and makes calls from named arguments.

    Arguments that are not given are left out, as `bind` leaves them out. An argument too many, or one of an unknown
    name, is left for the function itself to refuse.

    Attributes:
        names: of the arguments that may be given by place, in order.
    """

    def __init__(self, function: Callable[..., Any]):
        self._signature = inspect.signature(function)
        parameters = self._signature.parameters.values()
        self._plain = all(p.kind in _NAMED for p in parameters)
        self.names = tuple(p.name for p in parameters if p.kind is Parameter.POSITIONAL_OR_KEYWORD)

    def named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call, by parameter name."""
        if self._plain and len(args) <= len(self.names):
            return {**dict(zip(self.names, args, strict=False)), **kwargs}
        return dict(self._signature.bind(*args, **kwargs).arguments)

    def call(self, function: Callable[..., Any], named: Mapping[str, Any]) -> Any:
        """Call a function of this signature."""
        if self._plain:
            return function(**named)
        bound = inspect.BoundArguments(self._signature, dict(named))
        return function(*bound.args, **bound.kwargs)
