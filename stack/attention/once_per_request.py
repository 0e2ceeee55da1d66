"""What is worked out once in a request and holds for all of its steps."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ..runtime.target import Target

T = TypeVar("T")


@dataclass
class OncePerRequest(Generic[T]):
    """What was worked out, for as long as a request asks for the same.

    Such as a look into a mask that waits for the device: the first step that asks waits once for every layer, in each
    guidance branch, and later steps wait for nothing.
    """

    target: Target
    _request: int = -1
    _known: dict[Hashable, tuple[Any, T]] = field(default_factory=dict)

    @property
    def samples(self) -> tuple[int, ...]:
        """Which of the batch the running block computes; () for all. What differs between them goes by these."""
        return self.target.clock.samples

    def once(self, place: Hashable, work_out: Callable[[], T]) -> T:
        """What `work_out` says of a place, such as a layer; asked once for each branch of a request.

        Must be called within a call of the denoiser.
        """
        context, conditions = self.target.clock.context, self.target.conditions
        assert context is not None and conditions.given, "asked outside of a call of the denoiser"
        if context.request != self._request:
            self._request, self._known = context.request, {}
        key, asked_for = (context.branch, place), conditions.asked_for
        known = self._known.get(key)
        if known is None or known[0] != asked_for:
            known = self._known[key] = asked_for, work_out()
        return known[1]
