"""Modules whose output nobody reads on a cached step: they answer at once, with tensors that only have a shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from ...core.installer import Installer
from ...models.ports import shape_only
from ...runtime.call import DenoiserCall, Proceed


class Bypass:
    """Wraps blocks and the modules that only blocks read: embedders (`Wiring.embedders`) and position tables.

    HunyuanVideo's embedder refines the text in blocks of its own: a third of a cached step of a small model. On a step
    on which no block runs these modules answer with tensors of the shapes they last had on this branch, without memory,
    and of NaN: should anything read one after all, the output's guard notices.
    """

    def __init__(self) -> None:
        self._branch: str | None = None  # of the current call; None outside of calls
        self._skips = False

    def install(self, modules: Iterable[nn.Module], install: Installer) -> None:
        """Stand before these modules."""
        for module in modules:
            install.wrap_call(module, "forward", self._before)

    def run(self, call: DenoiserCall, proceed: Proceed, branch: str, skips: bool) -> Any:
        """Make a call for this branch, in which none of the modules run if `skips`."""
        self._branch, self._skips = branch, skips
        try:
            return proceed(call)
        finally:
            self._branch, self._skips = None, False

    def _before(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        shapes: dict[str, Any] = {}  # by branch

        def forward(*args: Any, **kwargs: Any) -> Any:
            branch = self._branch
            if self._skips and branch in shapes:
                return shapes[branch]
            made = inner(*args, **kwargs)
            if branch is not None and not alike(shapes.get(branch), made):
                shapes[branch] = shape_only(made)
            return made

        return forward


def alike(one: Any, other: Any) -> bool:
    """Whether two tensors, or two tuples or lists of them, have the same shapes, dtypes and devices."""
    if isinstance(one, tuple | list):
        return type(one) is type(other) and len(one) == len(other) and all(map(alike, one, other))
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
