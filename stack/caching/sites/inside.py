"""Wrappers on modules inside of blocks, where the blocks may be compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from torch import nn

from ...core.installer import Installer

Forward = Callable[..., Any]
Wrapper = Callable[[Forward], Forward]


def as_it_is(forward: Forward) -> Forward:
    """For blocks that are not compiled."""
    return forward


@dataclass(frozen=True)
class Inside:
    """Puts a cache's wrappers on the modules of a block.

    A wrapper decides in Python and changes the cache's state. Traced into a compiled block it would be compiled again
    for every step and every block, until the compiler gives up. So it is kept out of the trace: the block is compiled
    in pieces, up to each wrapper and on behind it, and the module within the wrapper is compiled for itself.

    Attributes:
        compile: what the blocks' own forward was compiled with.
        whole: whether the current step runs its modules on all tokens. On others they run uncompiled: every number of
            tokens would be compiled again.
    """

    compile: Callable[[Forward], Forward]
    whole: Callable[[], bool]

    def wrap(self, module: nn.Module, wrapper: Wrapper, install: Installer) -> None:
        """Let the module's `forward` go through `wrapper(inner)`."""
        install.wrap_call(module, "forward", lambda inner: wrapper(self._within(inner)), traced=False)

    def _within(self, inner: Forward) -> Forward:
        compiled = self.compile(inner)
        if compiled is inner:
            return inner
        return wraps(inner)(lambda *args, **kwargs: (compiled if self.whole() else inner)(*args, **kwargs))
