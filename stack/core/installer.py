"""The only code that changes a model. Every change is recorded with its inverse before it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from .changed import ExchangedData, SetAttribute, WrappedCall, note
from .stand_in import StandIn

# Where accelerate keeps a module's own forward while an offloading hook stands before it.
BEHIND_HOOK = "_old_forward"


class Record(Protocol):
    """A change, known before it is made."""

    def undo(self) -> None:
        """Take it back if it was made and is still there. Safe to call twice."""
        ...

    def keep(self) -> None:
        """Make it final, and let go of what it replaced."""
        ...


@dataclass
class _Action:
    """What has to be done when a change is taken back."""

    undo: Callable[[], None]

    def keep(self) -> None:
        pass


class Installer:
    """Changes to one model, taken back in reverse order by `rollback()`.

    Changes touch instances only, never classes, and no process-wide state. Only what is still there is taken back:
    what others have put in its place, or around it, stays. Wherever applying or taking back breaks off, a further
    `rollback()` goes on from there.
    """

    def __init__(self) -> None:
        self._records: list[Record] = []

    def __len__(self) -> int:
        return len(self._records)

    @property
    def weights(self) -> bool:
        """Whether some weights are other ones."""
        return any(isinstance(record, (StandIn, ExchangedData)) for record in self._records)

    @property
    def intact(self) -> bool:
        """Whether every wrapper is called first: nobody has put another in its place, or around it."""
        return all(record.stands for record in self._records if isinstance(record, WrappedCall))

    def replace_module(self, root: nn.Module, path: str, new: nn.Module) -> None:
        """Put `new` where `root.get_submodule(path)` is. Copies and state dicts of the model hold the old one."""
        parent, _, name = path.rpartition(".")
        stand_in = StandIn(root.get_submodule(parent), name, new)
        self._records.append(stand_in)
        stand_in.begin()
        stand_in.parent._modules[name] = new

    def wrap_call(
        self, owner: Any, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]], traced: bool = True
    ) -> None:
        """Let `owner.name(...)` go through `wrapper(inner)`, on this instance only.

        Args:
            traced: whether a compiler that meets it may trace it; otherwise it is called as Python.
        """
        wrapped = WrappedCall(owner, name, wrapper, traced)
        self._records.append(wrapped)
        note(owner, wrapped)
        setattr(owner, name, wrapped.called)

    def set_attribute(self, owner: Any, name: str, value: Any) -> None:
        """Set an existing attribute."""
        attribute = SetAttribute(owner, name, value)
        self._records.append(attribute)
        note(owner, attribute)
        setattr(owner, name, value)

    def set_data(self, owner: nn.Module, name: str, value: torch.Tensor) -> None:
        """Write new values into a parameter; the old tensor is kept aside, so that it comes back bit for bit."""
        exchanged = ExchangedData(owner, name, value)
        self._records.append(exchanged)
        note(owner, exchanged)
        exchanged.put()

    def on_rollback(self, action: Callable[[], None]) -> None:
        """Run `action`, once or twice, when everything installed after this call has been taken back."""
        self._records.append(_Action(action))

    def forget(self) -> None:
        """Make every change final, and let go of what it replaced."""
        while self._records:
            self._records[-1].keep()
            self._records.pop()

    def rollback(self) -> None:
        """Take every change back, the last one first. Safe to call twice."""
        while self._records:
            self._records[-1].undo()
            self._records.pop()
