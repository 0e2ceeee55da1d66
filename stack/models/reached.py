"""Run something until a module is called, and no further."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from torch import nn

from ..core.arguments import Arguments


class _Reached(Exception):
    def __init__(self, given: Mapping[str, Any]):
        super().__init__()
        self.given = given


def given_to(module: nn.Module, run: Callable[[], Any]) -> Mapping[str, Any] | None:
    """The arguments of the module's first call, by name; nothing behind it runs. None where it is not called."""

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        raise _Reached(Arguments(module.forward, module).named(args, kwargs))

    handle = module.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        run()
    except _Reached as reached:
        return reached.given
    finally:
        handle.remove()
    return None
