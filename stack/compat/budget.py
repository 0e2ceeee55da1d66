"""An error budget: the allowed error of the final picture, divided among the cached steps. Pure numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

SMALLEST = 0.05  # size of a sample, in units of the noise: an empty picture is no reason to cache nothing at all
EARLY = 2.0  # a forecast that has failed twice as badly as expected is believed at once, a better one by half


@dataclass
class ErrorBudget:
    """Estimates what caching a step would cost and whether the budget still allows it.

    A forecast of order p from a full step at gap g is off by about r g^(p+1) of its feature (Taylor's remainder); r is
    measured at every full step that ends a run of cached ones, where forecast and truth are both known. An error at a
    step enters the final sample with the step's share of the noise level, |sigma_s - sigma_(s+1)|, so the final error
    is estimated as

        scale / size * sum over cached steps of weight_s r g_s^(p+1),

    a sum of absolute values, since errors of neighbouring steps point the same way. `size` is the sample's root mean
    square, noise being 1: what is allowed is relative to the sample, while an output holds noise and sample both, so
    that the same error weighs three to five times as much on a grey picture as on a white one. `scale` is what a
    calibration run found between such estimates and finished pictures.

    Args:
        allowed: relative error of the final sample, against the same stack uncached.
        xs: coordinate of every step.
        weights: what a step's error weighs; they sum to 1.
        order: of the forecast.
        scale: measured final error over the estimate.
        size: of the sample, as far as it is known.
    """

    allowed: float
    xs: Sequence[float]
    weights: Sequence[float]
    order: int
    scale: float = 1.0
    size: float = 1.0
    rate: float | None = None
    spent: float = 0.0
    full: int = 0
    _run: list[int] = field(default_factory=list)

    def cost(self, step: int) -> float:
        """Estimated final error that caching this step adds."""
        assert self.rate is not None
        return self.scale / self.size * self.weights[step] * self.rate * self._gap(step) ** (self.order + 1)

    def affords(self, step: int) -> bool:
        """Whether this step may be cached; nothing is while no forecast has been checked.

        What is left is shared out by the weights of the steps to come. Costs grow along a run as g^(p+1), so that a
        run's mean is 1 / (p + 2) of its last step's: that much more than its share may be paid for one step, as long
        as all of them together stay within what is allowed.
        """
        if self.rate is None:
            return False
        left, ahead = self.allowed - self.spent, sum(self.weights[step:])
        cost = self.cost(step)
        return cost <= left and cost * ahead <= (self.order + 2) * left * self.weights[step]

    def resize(self, size: float) -> None:
        """A new estimate of the sample's size. What has been spent so far is not converted.

        For some pictures early estimates of the sample are too large. What was spent under them, converted to the
        smaller size, would leave nothing for the rest of the schedule. The fitted scale makes up for it.
        """
        self.size = max(size, SMALLEST)

    def skipped(self, step: int) -> None:
        """The step was cached."""
        self.spent += self.cost(step)
        self._run.append(step)

    def ran(self, step: int, error: float | None) -> None:
        """The step ran in full; its forecast would have been off by `error` of the feature, if there was one.

        What was booked for the cached steps before it is corrected: the forecast's error at their end is known now.
        """
        gap = self._gap(step)
        if error is not None and gap > 0:
            measured = error / gap ** (self.order + 1)
            if self.rate:
                booked = sum(self.cost(s) for s in self._run)
                self.spent += booked * (measured / self.rate - 1)
            self.rate = measured if self.rate is None or measured > EARLY * self.rate else (measured + self.rate) / 2
        self.full, self._run = step, []

    def _gap(self, step: int) -> float:
        return abs(self.xs[step] - self.xs[self.full])


def weights_of(sigmas: Sequence[float]) -> list[float]:
    """Each step's share of the whole change in noise level; the last one goes to 0. Equal shares where none changes."""
    gaps = [abs(a - b) for a, b in zip(sigmas, [*sigmas[1:], 0.0], strict=True)]
    gaps = gaps if any(gaps) else [1.0] * len(gaps)
    return [gap / sum(gaps) for gap in gaps]
