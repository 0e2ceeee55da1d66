"""An instance that was changed: what it is without the changes, for those who copy or save it."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from .casts import APPLY, Casts
from .errors import StackError

STATE = "__getstate__"
Call = Callable[..., Any]


class Change(Protocol):
    """Something done to an instance that its copies are made without."""

    def leave(self, names: dict[str, Any]) -> None:
        """Take it out of a copy of the instance's attributes."""
        ...


class Changed:
    """The changes of one instance, in order. Stands at its `__getstate__`, which `copy` and `pickle` ask."""

    def __init__(self, owner: Any):
        self.owner, self.changes = owner, list[Change]()

    def __call__(self) -> dict[str, Any]:
        """The instance's attributes without the changes: what a copy of it is made of."""
        kind: Any = type(self.owner)
        state = dict(kind.__getstate__(self.owner))
        del state[STATE]
        for change in reversed(self.changes):
            change.leave(state)
        return state


def note(owner: Any, change: Change) -> None:
    """Let copies of an instance be made without a change."""
    if STATE not in vars(owner):
        vars(owner)[STATE] = Changed(owner)
    vars(owner)[STATE].changes.append(change)


def forget(owner: Any, change: Change) -> None:
    """The change is no more. Safe to call twice."""
    known = vars(owner).get(STATE)
    if known is not None:
        known.changes = [other for other in known.changes if other is not change]
        if not known.changes:
            del vars(owner)[STATE]


class WrappedCall:
    """A call of an instance that goes through a wrapper.

    Attributes:
        called: what stands at the instance's attribute. A function: the compiler would trace a block anew for every
            object that it meets there.
    """

    def __init__(
        self, owner: Any, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]], traced: bool
    ):
        self.owner, self.name, self.own = owner, name, name in vars(owner)
        self.inner = inner = getattr(owner, name)
        run = wrapper(inner)

        @functools.wraps(inner, updated=())
        def called(*args: Any, **kwargs: Any) -> Any:
            return run(*args, **kwargs)

        def off() -> None:
            nonlocal run
            run = inner

        self.called, self._off = called if traced else torch.compiler.disable(called), off

    def leave(self, names: dict[str, Any]) -> None:
        if not self._leave(names):
            what = f"{type(self.owner).__name__} has hooks that were put on above a stack"
            raise StackError(f"{what}: expected a model that can be copied; undo() the stack first, then copy it")

    def _leave(self, names: dict[str, Any]) -> bool:
        # accelerate moves what it finds at `forward` to another attribute, and back when its hook is removed.
        places = [place for place, value in names.items() if value is self.called]
        for place in places:
            if place == self.name and not self.own:
                del names[place]
            else:
                names[place] = self.inner
        return bool(places)

    @property
    def stands(self) -> bool:
        """Whether it, or the last one put on above it, is where libraries leave it: first, or behind their hooks."""
        changes = vars(self.owner)[STATE].changes
        last = [each for each in changes if isinstance(each, WrappedCall) and each.name == self.name][-1]
        places = [vars(self.owner), *self._kept()]
        return any(value is last.called for place in places for value in place.values())

    def _kept(self) -> list[dict[str, Any]]:
        """What hooks of diffusers on the instance stand before."""
        registry = vars(self.owner).get("_diffusers_hook")
        return [] if registry is None else [vars(kept) for kept in registry._fn_refs]

    def undo(self) -> None:
        """Take it off where it stands; whoever else holds it calls what was there before."""
        self._off()
        self._leave(vars(self.owner))
        for kept in self._kept():
            kept.update({name: self.inner for name, value in kept.items() if value is self.called})
        forget(self.owner, self)

    def keep(self) -> None:
        """It stays for good."""


class SetAttribute:
    """Another value of an attribute that was there."""

    def __init__(self, owner: Any, name: str, value: Any):
        self.owner, self.name, self.value = owner, name, value
        self._before = getattr(owner, name)

    def leave(self, names: dict[str, Any]) -> None:
        if names.get(self.name) is self.value:
            names[self.name] = self._before

    def undo(self) -> None:
        """Set it back, unless somebody has set yet another."""
        if getattr(self.owner, self.name) is self.value:
            setattr(self.owner, self.name, self._before)
        forget(self.owner, self)

    def keep(self) -> None:
        """It stays for good."""
        forget(self.owner, self)


class ExchangedData:
    """Other values in a parameter. Its own are kept aside, and are what the module's state dict and copies hold.

    Args:
        owner: the module.
        name: of its parameter.
        value: what it is to hold.
    """

    def __init__(self, owner: nn.Module, name: str, value: torch.Tensor):
        self.owner, self.name, self.value = owner, name, value
        self._parameter = owner._parameters[name]
        assert self._parameter is not None
        self._before = self._parameter.data
        self._casts = Casts(owner, self._dtype)
        self._hook = functools.partial(self._plain_state)

    def put(self) -> None:
        """Write the values."""
        assert self._parameter is not None
        self.owner.register_state_dict_post_hook(self._hook)
        self._casts.begin()
        self._parameter.data = self.value
        del self.value

    @property
    def _plain(self) -> torch.Tensor:
        """The parameter's own values, on the device and in the type that it has now."""
        assert self._parameter is not None
        for dtype in self._casts.take():
            self._before = self._before.to(dtype)
        return self._before.to(self._parameter.data)

    def _dtype(self) -> torch.dtype:
        assert self._parameter is not None
        return self._parameter.dtype

    def _plain_state(self, module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        if module._parameters.get(self.name) is self._parameter:  # and no other that somebody has put there
            state[prefix + self.name] = self._plain

    def leave(self, names: dict[str, Any]) -> None:
        assert self._parameter is not None
        if names["_parameters"].get(self.name) is self._parameter:
            plain = nn.Parameter(self._plain, self._parameter.requires_grad)
            names["_parameters"] = {**names["_parameters"], self.name: plain}
        names["_state_dict_hooks"] = self._other_hooks()
        names.pop(APPLY, None)

    def _other_hooks(self) -> OrderedDict[int, Any]:
        return OrderedDict((n, hook) for n, hook in self.owner._state_dict_hooks.items() if hook is not self._hook)

    def undo(self) -> None:
        """Write the parameter's own values back."""
        assert self._parameter is not None
        self._parameter.data = self._plain
        self.keep()

    def keep(self) -> None:
        """It stays for good: state dicts and copies hold it too."""
        self.owner._state_dict_hooks = self._other_hooks()
        self._casts.end()
        forget(self.owner, self)
