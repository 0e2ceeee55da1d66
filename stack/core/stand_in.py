"""A module in another's place: saving, copying, moving and hooking the model see the replaced module."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from torch import nn

from .casts import Casts
from .errors import StackError

FOLLOWS = "follows"  # buffer without elements: it is moved and cast with the model, the module that was replaced is not
# Where a module keeps what users have registered on it.
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def itself(module: nn.Module) -> nn.Module:
    """Makes the copy of a stand-in: a copy of the module that it replaces."""
    return module


def no_original(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """A state dict is asked of a module whose original weights are gone.

    Raises:
        StackError: always.
    """
    what = f"{prefix.rstrip('.')} has rounded weights only (frozen, or loaded so)"
    raise StackError(f"{what}: expected the original ones for a state dict; write it with stack.save(folder)")


class StandIn:
    """A module in another's place.

    The other one is not moved with the model, which offloading does on every call: it is moved to the model's device
    when it is put back.

    Args:
        parent: whose child is replaced.
        name: of that child, which may become a part of `new`.
        new: what stands there now.
    """

    def __init__(self, parent: nn.Module, name: str, new: nn.Module):
        old = parent.get_submodule(name)
        self.parent, self.name, self.new = parent, name, new
        self._old = old
        self._tensor = next((p for p in old.parameters(recurse=False) if p.is_floating_point()), None)
        self._inside = any(module is old for module in new.modules())
        # A parameter that both have shows `requires_grad_()` too.
        self._shared = next((p for p in new.parameters() if any(p is own for own in old.parameters())), None)
        self._trained = self._shared is not None and self._shared.requires_grad
        self._casts: Casts | None = None
        # What users may set on `new` that is meant for `old`: all but the parameters that `new` has of its own.
        own = new._parameters
        self._settable = [n for n, parameter in old._parameters.items() if own.get(n, parameter) is parameter]

    def begin(self) -> None:
        """Let `new` answer for `old`. Changes `new` only."""
        old, new = self._old, self.new
        new.train(old.training)
        if not self._inside:
            if self._tensor is not None:
                new.register_buffer(FOLLOWS, self._tensor.data.new_empty(0), persistent=False)
                self._casts = Casts(new, self._dtype)
                self._casts.begin()
            for name in HOOKS:
                vars(new)[name] = vars(old)[name]
        new.register_state_dict_post_hook(partial(self._plain_state))
        vars(new)["__reduce_ex__"] = self._reduce

    def undo(self) -> None:
        """Put `old` back wherever `new` is in its parent, also inside a wrapper added since."""
        old, new = self._old, self.new
        for name in HOOKS if self._inside else ():
            if vars(new)[name]:
                vars(new)[name].update(vars(old)[name])
                vars(old)[name] = vars(new)[name]
        for module in list(self.parent.modules()):
            for name in [name for name, child in module._modules.items() if child is self.new]:
                module._modules[name] = self.plain()
        self._release()
        for name in HOOKS:
            vars(new)[name] = OrderedDict()

    def keep(self) -> None:
        """Make the replacement final: `new` no longer answers for `old`, and a state dict of it is refused."""
        self._release()
        self._old, self._tensor = self.new, None
        self.new.register_state_dict_post_hook(no_original)

    def _release(self) -> None:
        """Let `new` answer for itself again: a pass may put it on another time."""
        new = self.new
        vars(new).pop("__reduce_ex__", None)
        if self._casts is not None:
            self._casts.end()
        new._state_dict_hooks.clear()
        new._buffers.pop(FOLLOWS, None)

    def plain(self) -> nn.Module:
        """`old`, as it would be had it stayed in the model."""
        old, new = self._old, self.new
        self._carry_over()
        if not self._inside:
            follows = new._buffers.get(FOLLOWS)
            for dtype in self._casts.take() if self._casts is not None else ():
                old.to(dtype)
            apart = follows is not None and self._tensor is not None and follows.device != self._tensor.device
            if follows is not None and apart and not follows.is_meta:
                old.to(follows.device)
            old.train(new.training)
            if self._shared is not None and self._shared.requires_grad != self._trained:
                old.requires_grad_(self._shared.requires_grad)
        return old

    def _carry_over(self) -> None:
        """Give `old` the parameters that somebody has set on `new`. Those that are offloaded were not set."""
        mine, theirs = self.new._parameters, self._old._parameters
        for name in self._settable:
            parameter = mine.get(name)
            if parameter is not None and parameter is not theirs[name] and not parameter.is_meta:
                theirs[name] = parameter

    def _dtype(self) -> torch.dtype:
        follows = self.new._buffers[FOLLOWS]
        assert follows is not None
        return follows.dtype

    def _plain_state(self, module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        for name in [name for name in state if name.startswith(prefix)]:
            del state[name]
        self.plain().state_dict(destination=state, prefix=prefix)

    def _reduce(self, protocol: Any) -> tuple[Any, ...]:
        return itself, (self.plain(),)
