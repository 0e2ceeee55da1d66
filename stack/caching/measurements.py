"""Numbers that full steps measure, on their way to those who decide by them: nobody waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

import torch

from ..core.ranks import ALONE, Ranks
from ..core.readback import Readback

Takes = Callable[..., None]


@dataclass
class Measurements:
    """Numbers and what is to be done with them: asked at every step, it hands over what has arrived.

    On a CPU that is everything. On an accelerator the host runs ahead: a step or two may be decided before they are
    known.

    Attributes:
        noted: not sent yet.
        coming: sent together, oldest first; who takes them, and how many.
    """

    noted: list[tuple[Takes, torch.Tensor]] = field(default_factory=list)
    coming: list[tuple[Readback, list[tuple[Takes, int]]]] = field(default_factory=list)

    def note(self, take: Takes, numbers: torch.Tensor) -> None:
        """Numbers (k,) that are to be taken when they have arrived, one argument each."""
        self.noted.append((take, numbers))

    def poll(self, wait: bool = False, ranks: Ranks = ALONE) -> None:
        """Send what is noted, and hand over what has arrived; all of it where that may be waited for.

        Args:
            ranks: the processes that share the tokens whose norms these are.
        """
        if self.noted:
            numbers = ranks.norms(torch.cat([numbers.float() for _, numbers in self.noted]))
            self.coming.append((Readback(numbers), [(take, len(numbers)) for take, numbers in self.noted]))
            self.noted = []
        while self.coming and (wait or self.coming[0][0].ready):
            arrived, takers = self.coming.pop(0)
            read = iter(arrived.read())
            for take, count in takers:
                take(*islice(read, count))

    def clear(self) -> None:
        """Nothing is waited for any more."""
        self.noted, self.coming = [], []
