"""Arguments of wrapped calls by name: what `inspect.Signature.bind` gives, at a fiftieth of its cost for most.

Wrappers stand before every block on every step, and a cached step may cost no more than a hundredth of a full one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from inspect import Parameter
from types import MethodType
from typing import Any

from torch import nn

_NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


class Arguments:
    """Names the arguments of calls of one function, and makes calls from named arguments.

    Arguments that are not given are left out, as `bind` leaves them out. An argument too many, or one of an unknown
    name, is left for the function itself to refuse.

    Args:
        module: whose forward it is. Its class names the arguments where a user's wrapper around it does not.

    Attributes:
        names: of the arguments that may be given by place, in order.
    """

    def __init__(self, function: Callable[..., Any], module: nn.Module | None = None):
        self._signature = inspect.signature(function)
        if module is not None and not _plain(self._signature):
            own = inspect.signature(MethodType(type(module).forward, module))
            self._signature = own if _plain(own) else self._signature
        parameters = self._signature.parameters.values()
        self._plain = _plain(self._signature)
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


def _plain(signature: inspect.Signature) -> bool:
    return all(p.kind in _NAMED for p in signature.parameters.values())
