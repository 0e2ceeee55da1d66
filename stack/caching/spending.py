"""How far a sample may still go wrong, and the next full step that keeps it within that. Pure numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from .outlook import Outlook

PRIOR = 50.0  # squared error of forecasts over that on Gaussian data, before the first is measured
LEAST = 0.1  # of what is allowed (squared): kept for the steps to come, however much is spent
Gap = tuple[int, int, int]  # (full step before the last, last full step, the full step that ends it)
Takes = Callable[[float, float], None]


@dataclass
class Spending:
    """Chooses the full steps of one sample so that the estimated error of the finished sample stays within bounds.

    What a gap between full steps leaves in the finished sample is known for Gaussian data (`Outlook.left`), and so is
    what the full step at its end measures (`Outlook.measured`). The measured squared error over the expected one says
    how much harder this sample is than that: the gap is booked at so many times its cost, and gaps to come are expected
    to cost as many times theirs. The next full step is the first one of the shortest way that stays within what is
    left: as a step-size controller does it, except that the way behind the next step counts too. Errors of gaps are
    added up as squares.

    Full steps are indices among the levels of the outlook; -1 is none.

    Attributes:
        allowed: error of the finished sample, relative to it.
        places: of every step of the request among the levels, see `planned_levels`.
        scale: measured final error over the estimate, from `Stack.fit_gate`.
        hardness: expected squared error over that on Gaussian data.
        spent: sum of squared errors of the gaps that are behind.
        size: of the sample, that errors are relative to; 0 as long as it is not known.
        before, at: the last two full steps.
    """

    allowed: float
    ahead: Outlook
    places: Sequence[int]
    scale: float = 1.0
    hardness: float = PRIOR
    spent: float = 0.0
    size: float = 0.0
    before: int = -1
    at: int = -1

    def due(self, step: int) -> bool:
        """Whether this step has to be full, by what is known now."""
        place = self.places[step]
        # A sampler's second look at a level is as the first one was.
        return self.at < 0 or (place >= 0 and (place == self.at or self._next() <= place))

    def ran(self, step: int) -> Takes:
        """The step ran in full, and the gap behind it is booked as expected.

        Returns:
            What takes the error that the step measures of that gap, and the sample's size (`measured`).
        """
        place, gap = self.places[step], None
        if place >= 0 and place != self.at:
            gap = (self.before, self.at, place) if 0 <= self.at < place - 1 else None
            self.before, self.at = self.at, place
        self.spent += self.hardness * self._left(gap)
        return partial(self.measured, gap, self.hardness)

    def measured(self, gap: Gap | None, booked: float, error: float, size: float) -> None:
        """What the full step at the end of a gap has measured; it may come some steps later.

        A larger error than expected is believed at once, a smaller one by half. Numbers that are not finite say
        nothing.

        Args:
            gap: None where the step before was full too.
            booked: the hardness that the gap was booked with.
            error: see `Outlook.measured`; over the size.
            size: root mean square of the sample, as estimated now.
        """
        if math.isfinite(size) and size > 0:
            # All that is relative to the sample is relative to this size from now on: estimates grow, under guidance
            # from a tenth of the finished sample's.
            smaller = (self.size / size) ** 2 if self.size else 1.0
            self.size, self.spent, self.hardness = size, self.spent * smaller, self.hardness * smaller
            booked *= smaller
        if gap is None or not math.isfinite(error):
            return
        before, at, to = gap
        found = error**2 / float(self.ahead.measured[before + 1, at, to])
        self.spent += (found - booked) * self._left(gap)
        self.hardness = found if found > self.hardness else math.sqrt(found * self.hardness)

    def go_on_from(self, other: Spending) -> None:
        """What the same sample has spent, and what is known of it; not its full steps."""
        self.spent, self.hardness, self.size = other.spent, other.hardness, other.size

    def forget(self) -> None:
        """What was stored is dropped: the next step is full, and forecasts begin anew."""
        self.before = self.at = -1

    @property
    def estimate(self) -> float:
        """Of the finished sample's relative error, as if no more step were full."""
        rest = 0.0 if self.at < 0 else self.hardness * float(self.ahead.to_go[0, self.before + 1, self.at])
        return self.scale * math.sqrt(max(0.0, self.spent + rest))

    def _left(self, gap: Gap | None) -> float:
        return float(self.ahead.left[gap[0] + 1, gap[1], gap[2]]) if gap else 0.0

    def _next(self) -> int:
        allowed = (self.allowed / self.scale) ** 2
        left = max(allowed - self.spent, LEAST * allowed)
        enough = self.hardness * self.ahead.to_go[:, self.before + 1, self.at] <= left
        more = int(enough.argmax()) if enough.any() else len(enough) - 1
        return self.ahead.next_full(self.before, self.at, more) if enough.any() else self.at + 1
