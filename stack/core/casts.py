"""What a module has been cast to. A cast there and back leaves its type as it was, and its values rounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

APPLY = "_apply"  # what `.to()`, `.half()` and the like go through, module by module


class Casts:
    """The casts of a module from now on, for tensors of it that are kept aside. Stands at its `_apply`.

    Args:
        module: that is cast with the model it is in.
        dtype: reads its type.
    """

    def __init__(self, module: nn.Module, dtype: Callable[[], torch.dtype]):
        self._module, self._dtype = module, dtype
        self._before = vars(module).get(APPLY)
        self._inner = module._apply
        self._last, self._made = dtype(), list[torch.dtype]()

    def begin(self) -> None:
        """Look at every cast."""
        vars(self._module)[APPLY] = self._apply

    def end(self) -> None:
        """Look no more. Safe to call twice."""
        if self._before is None:
            vars(self._module).pop(APPLY, None)
        else:
            vars(self._module)[APPLY] = self._before

    def take(self) -> list[torch.dtype]:
        """The types since the last time, in order."""
        made, self._made = self._made, []
        return made

    def _apply(self, *args: Any, **kwargs: Any) -> nn.Module:
        module = self._inner(*args, **kwargs)
        if self._dtype() != self._last:
            self._last = self._dtype()
            self._made.append(self._last)
        return module
