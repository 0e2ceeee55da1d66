"""The only code that changes a model. Every change is recorded with its inverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# Where accelerate keeps a module's own forward while an offloading hook stands before it.
BEHIND_HOOK = "_old_forward"
HOOK_PLACES = ("forward", BEHIND_HOOK)


class Installer:
    """Changes to one model, taken back in reverse order by `rollback()`.

    Changes touch instances only, never classes, and no process-wide state.
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._undo)

    def replace_module(self, root: nn.Module, path: str, new: nn.Module) -> None:
        """Put `new` where `root.get_submodule(path)` is."""
        parent_path, _, name = path.rpartition(".")
        parent = root.get_submodule(parent_path)
        old = parent.get_submodule(name)
        parent._modules[name] = new
        self._undo.append(lambda: parent._modules.__setitem__(name, old))

    def wrap_call(self, owner: Any, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Let `owner.name(...)` go through `wrapper(inner)`, on this instance only."""
        own = vars(owner)
        had, before = name in own, own.get(name)
        inner = getattr(owner, name)
        mine = wrapper(inner)
        setattr(owner, name, mine)

        def undo() -> None:
            # accelerate's hooks move what they find at `forward` to `_old_forward`, and back when they are removed.
            moved = next((place for place in HOOK_PLACES if place != name and own.get(place) is mine), "")
            if name in HOOK_PLACES and moved:
                setattr(owner, moved, inner)
            elif had:
                setattr(owner, name, before)
            else:
                delattr(owner, name)

        self._undo.append(undo)

    def set_processor(self, attention: Any, processor: Any) -> None:
        """Exchange a diffusers attention processor."""
        before = attention.processor
        attention.processor = processor
        self._undo.append(lambda: setattr(attention, "processor", before))

    def set_attribute(self, owner: Any, name: str, value: Any) -> None:
        """Set an existing attribute."""
        before = getattr(owner, name)
        setattr(owner, name, value)
        self._undo.append(lambda: setattr(owner, name, before))

    def set_data(self, parameter: torch.Tensor, value: torch.Tensor) -> None:
        """Write new values into a parameter; the old tensor is kept aside, so that it comes back bit for bit."""
        before = parameter.data
        parameter.data = value
        self._undo.append(lambda: setattr(parameter, "data", before))

    def on_rollback(self, action: Callable[[], None]) -> None:
        """Run `action` when everything installed after this call has been taken back."""
        self._undo.append(action)

    def forget(self) -> None:
        """Make every change final, and let go of what it replaced."""
        self._undo.clear()

    def rollback(self) -> None:
        """Take every change back, the last one first. Safe to call twice."""
        while self._undo:
            self._undo.pop()()
