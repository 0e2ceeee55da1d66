"""When to run fully: pure functions of the step, so that every run of a schedule decides alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from ..core.errors import StackError


class Schedule(Protocol):
    """Decides which steps run fully."""

    def full_steps(self, steps: int) -> frozenset[int]:
        """The full steps of a request of this length."""
        ...


@dataclass(frozen=True)
class Interval:
    """Full for `warmup` steps, then every `interval`-th step.

    With 50 steps and warmup 3 this gives the published full-step counts: interval 5 / 7 / 8 -> 12 / 9 / 8
    (TaylorSeer and SVD-Cache on FLUX); with warmup 1: interval 5 / 6 -> 10 / 9 (on HunyuanVideo).
    """

    interval: int = 7
    warmup: int = 3

    def __post_init__(self) -> None:
        if self.interval < 1 or self.warmup < 1:
            raise StackError(
                f"interval and warmup must be at least 1, got interval={self.interval}, warmup={self.warmup}: "
                "the first step has nothing to reuse"
            )

    def full_steps(self, steps: int) -> frozenset[int]:
        """The first `warmup` steps, then one after every `interval - 1` cached ones."""
        later = range(self.warmup + self.interval - 1, steps, self.interval)
        return frozenset(range(min(self.warmup, steps))) | frozenset(later)


@dataclass(frozen=True)
class Mask:
    """A calibrated schedule: these steps of `steps` are full."""

    full: tuple[int, ...]
    steps: int

    def __post_init__(self) -> None:
        wrong = [s for s in self.full if not 0 <= s < self.steps]
        if 0 not in self.full or wrong:
            raise StackError(
                f"full_steps must hold 0 and lie within 0..{self.steps - 1}, got {list(self.full)}: "
                "the first step has nothing to reuse"
            )

    def full_steps(self, steps: int) -> frozenset[int]:
        """The mask, for the number of steps it was calibrated on.

        Raises:
            StackError: another number of steps. (A policy transfers its full steps to other noise levels first.)
        """
        if steps != self.steps:
            raise StackError(f"this schedule was calibrated for {self.steps} steps, got {steps}: calibrate again")
        return frozenset(self.full)


@dataclass(frozen=True)
class Count:
    """So many full steps, evenly spread, the first step among them."""

    count: int

    def full_steps(self, steps: int) -> frozenset[int]:
        """At most as many as there are steps."""
        count = min(self.count, steps)
        return frozenset(round(k * steps / count) for k in range(count))


def dense_end(count: int, steps: int, power: float) -> tuple[int, ...]:
    """`count` full steps from 0 at times (1 - k / count) ** power: the larger the power, the denser near the data."""
    places = [0]
    for k in range(1, count):
        ideal = round(steps * (1 - (1 - k / count) ** power))
        places.append(min(max(ideal, places[-1] + 1), steps - count + k))
    return tuple(places)


@dataclass(frozen=True)
class Aligned:
    """A schedule moved so that steps are full where the way of computing them changes, as many as before.

    The steps after such a change are forecast from full steps of their own kind. The full steps at the start stay;
    those that are left are spread evenly between.

    Attributes:
        even: the schedule that is moved.
        switches: shares of the schedule, see `Facts.switches`.
    """

    even: Schedule
    switches: tuple[float, ...]

    def full_steps(self, steps: int) -> frozenset[int]:
        """As many as the moved schedule has; that one unchanged where it has too few for all switches."""
        before = self.even.full_steps(steps)
        lead = next((step for step in range(steps) if step not in before), steps)
        fixed = frozenset(range(lead)) | {step for share in self.switches if (step := round(share * steps)) < steps}
        missing = len(before) - len(fixed)
        return _spread(sorted(fixed), missing, steps) if missing >= 0 else before


def _spread(fixed: Sequence[int], more: int, steps: int) -> frozenset[int]:
    """These steps and `more` others, each where the gap is the widest."""
    gaps = list(pairwise([*fixed, steps]))
    inside = [0] * len(gaps)
    for _ in range(more):
        inside[max(range(len(gaps)), key=lambda i: (gaps[i][1] - gaps[i][0]) / (inside[i] + 1))] += 1
    between = (
        a + round(k * (b - a) / (n + 1)) for (a, b), n in zip(gaps, inside, strict=True) for k in range(1, n + 1)
    )
    return frozenset(fixed) | frozenset(between)


def same_share(mask: Mask, steps: int) -> Interval:
    """The interval schedule that runs about as large a share of steps fully as the mask does."""
    return Interval(interval=max(1, round(mask.steps / len(mask.full))), warmup=1 if steps < 20 else 2)
