"""What the masks of a request hide, looked up once where looking waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from ..runtime.target import Target


@dataclass
class RequestMasks:
    """What was read, for as long as a request asks for the same.

    The first step that asks waits once for every layer, in each guidance branch. Later steps wait for nothing: masks
    follow from arguments that are the same on every step, see `SelfAttention.steady`.
    """

    target: Target
    _request: int = -1
    _known: dict[Hashable, tuple[Hashable, str]] = field(default_factory=dict)

    def once(self, place: Hashable, read: Callable[[], str]) -> str:
        """What `read` says of the mask at a place, such as a layer; asked once for each branch of a request.

        Must be called within a call of the denoiser.
        """
        context, conditions = self.target.clock.context, self.target.conditions
        assert context is not None and conditions.given, "asked outside of a call of the denoiser"
        if context.request != self._request:
            self._request, self._known = context.request, {}
        key, asked_for = (context.branch, place), conditions.asked_for
        known = self._known.get(key)
        if known is None or known[0] != asked_for:
            known = self._known[key] = asked_for, read()
        return known[1]
