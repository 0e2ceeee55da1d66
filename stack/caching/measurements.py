"""Errors that full steps measure, on their way to those who decide by them: nobody waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..core.readback import Readback

Takes = Callable[..., None]


@dataclass
class Measurements:
    """Numbers and what is to be done with them.

    Attributes:
        noted: not sent yet.
        coming: sent together, oldest first.
    """

    noted: list[tuple[Takes, torch.Tensor]] = field(default_factory=list)
    coming: list[tuple[Readback, list[Takes]]] = field(default_factory=list)

    def note(self, take: Takes, numbers: torch.Tensor) -> None:
        """Numbers (k,), as many each time, that are to be taken when they have arrived."""
        self.noted.append((take, numbers))

    def poll(self, wait: bool = False) -> None:
        """Send what is noted, and hand over what has arrived; all of it where that may be waited for."""
        if self.noted:
            numbers = torch.stack([numbers.float() for _, numbers in self.noted])
            self.coming.append((Readback(numbers), [take for take, _ in self.noted]))
            self.noted = []
        while self.coming and (wait or self.coming[0][0].ready):
            arrived, takers = self.coming.pop(0)
            for take, numbers in zip(takers, arrived.read(), strict=True):
                take(*numbers)

    def clear(self) -> None:
        """Nothing is waited for any more."""
        self.noted, self.coming = [], []
