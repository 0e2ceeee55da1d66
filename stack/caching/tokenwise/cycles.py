"""What each step of a token-wise cache is: full, conservative or aggressive. Pure functions of the step.

DuCa (arXiv 2412.18911) alternates two cheap kinds of step between full ones; ToCa (arXiv 2410.05317) has only the
first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...core.errors import StackError, choose
from ..schedules import Interval

FULL_STEP, CONSERVATIVE, AGGRESSIVE = "F", "c", "a"


@dataclass(frozen=True)
class Pace:
    """How the interval between full steps changes over a request.

    Attributes:
        slope: w in I(s) = round(N / (1 + w - 2 w s / S)), s counting down to 0: long intervals while it is noisy.
        countdown: a step's position in its cycle is s mod I (DiT's sampler counts down) instead of counting up from
            the end of the warm-up: a constant interval 3 is then F a c, not F c a.
        halved: (from, to) as shares of the request, of s: the interval is 2 there.
    """

    slope: float = 0.0
    countdown: bool = False
    halved: tuple[float, float] = (0.0, 0.0)

    def interval(self, nominal: int, left: int, steps: int) -> int:
        """I(s) for the nominal interval N, with `left` = s steps to come of `steps` = S."""
        if self.halved[0] * steps <= left < self.halved[1] * steps:
            return 2
        return max(1, round(nominal / (1 + self.slope - 2 * self.slope * left / steps)))


PACES: dict[str, Pace] = {
    "even": Pace(),  # FLUX, Open-Sora, HunyuanVideo; PixArt under DuCa
    "pixart": Pace(slope=0.2),  # PixArt under ToCa
    "dit": Pace(slope=0.4, countdown=True, halved=(0.2, 0.4)),
}


@dataclass(frozen=True)
class Cycle:
    """A schedule that also says how the steps between full ones are spent.

    Attributes:
        interval: nominal distance N of full steps; the first `warmup` steps are full and the last of them opens the
            first cycle, which gives ToCa's published work on FLUX (14 / 12 / 10 full steps of 50 for N = 4 / 5 / 6).
        between: kinds of the steps after a full one, repeated: "ca" is DuCa, "c" ToCa.
    """

    interval: int = 5
    warmup: int = 3
    between: str = "ca"
    pace: str = "even"

    def __post_init__(self) -> None:
        Interval(self.interval, self.warmup)  # raises where either is too small
        if not self.between or set(self.between) - {CONSERVATIVE, AGGRESSIVE}:
            raise StackError(f"cycle must be made of c (conservative), a (aggressive), got {self.between!r}: try 'ca'")
        if self.pace not in PACES:
            raise choose("pace of the cache", self.pace, list(PACES))

    def kinds(self, steps: int) -> str:
        """The kinds of a request's steps, in order: "FFFcacaF..."."""
        pace, kinds, interval = PACES[self.pace], "", 1
        for step in range(steps):
            left = steps - 1 - step
            position = (left if pace.countdown else max(0, step - self.warmup + 1)) % interval
            if step < self.warmup or position == 0:
                kinds += FULL_STEP
                # Recomputed on full steps only. A new interval may divide the very next count: full steps in a row.
                interval = pace.interval(self.interval, left, steps)
            else:
                kinds += self.between[(position - 1) % len(self.between)]
        return kinds

    def full_steps(self, steps: int) -> frozenset[int]:
        """The full steps of a request of this length."""
        return frozenset(i for i, kind in enumerate(self.kinds(steps)) if kind == FULL_STEP)


def fill(full: Iterable[int], steps: int, between: str) -> str:
    """The kinds of a request whose full steps are given (a calibrated schedule), counted from the last full one."""
    kinds, full, run = "", frozenset(full), 0
    for step in range(steps):
        run = 0 if step in full else run + 1
        kinds += between[(run - 1) % len(between)] if run else FULL_STEP
    return kinds
