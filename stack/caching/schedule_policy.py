"""When a cache runs in full: the choices that make a schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..compat.horizon import transfer_schedule, uniform_levels
from ..core.errors import StackError, choose
from ..core.validate import Share, Steps
from .noise_schedule import ByNoise, Levels
from .options import Options
from .schedules import Aligned, Count, Mask, Schedule

SPREADS = ("even", "by-noise")


@dataclass(frozen=True)
class SchedulePolicy(Options):
    """Full steps of a request; under a gate only `warmup` is read.

    Attributes:
        interval, warmup: the first `warmup` steps are full, then every `interval`-th. With spread "by-noise" they only
            say how many steps are full. Not used with `full_steps`.
        count: number of full steps of a request, instead of interval and warm-up; 0 uses those.
        spread: "by-noise" puts the full steps where they are best for Gaussian data at the sampler's noise levels
            (`stack.caching.noise_schedule`); "even" puts them where interval and warm-up say.
        switches: shares of the schedule at which the step is always full; see `Aligned`.
        full_steps, steps: the full steps by number, and the number of steps of the schedule that they belong to.
        full_at: noise levels of `full_steps`; () takes them as evenly spaced in time. A request with other noise levels
            gets its full steps at these levels (`stack.compat.horizon`).
        segments: for each of `full_steps`, a factor on the gains until the next one; empty is 1 throughout.

    Raises:
        StackError: a value outside its range.
    """

    interval: int = 7
    warmup: int = 3
    count: Steps = 0
    spread: str = "even"
    switches: tuple[Share, ...] = ()
    full_steps: tuple[Steps, ...] = ()
    steps: Steps = 0
    full_at: tuple[float, ...] = ()
    segments: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if type(self.full_steps) is int:  # a likely slip: their number
            hint = f"calibrate(..., full_steps={self.full_steps}) chooses them"
            raise StackError(f"full_steps: expected the steps to run in full, got {self.full_steps}; {hint}")
        super().__post_init__()

    def check_values(self) -> None:
        if self.spread not in SPREADS:
            raise choose("spread of full steps", self.spread, SPREADS)
        count = len(self.full_steps)
        if count and not self.steps:
            raise StackError(f"full_steps={self.full_steps[:5]} need steps=, the number of steps that they are of")
        if self.full_at and len(self.full_at) != count:
            raise StackError(f"expected a noise level per full step, {count}, got {len(self.full_at)}")
        if self.segments and len(self.segments) != count:
            raise StackError(f"expected a factor per full step, {count}, got {len(self.segments)}")

    @property
    def even(self) -> bool:
        """Whether full steps are evenly spread."""
        return not (self.full_steps or self.switches or self.spread != "even")

    def of(
        self,
        steps: int,
        even_schedule: Callable[[int, int], Schedule],
        sigmas: Sequence[float] = (),
        levels: Levels = (),
        order: int = 1,
        corrected: bool = False,
    ) -> Schedule:
        """The calibrated full steps, transferred to other noise levels or another number of steps; else the interval's.

        Args:
            even_schedule: of an interval and a warm-up (`Site.even_schedule`).
            sigmas: noise levels of the request; () where they are not known yet.
            levels: its signal and noise, see `ByNoise`; () where they are not known yet.
            order, corrected: of the forecast that full steps are spread for.
        """
        if not self.full_steps:
            even = Count(self.count) if self.count else even_schedule(self.interval, self.warmup)
            if self.spread == "by-noise":
                return ByNoise(even, tuple(levels), order, corrected, self.switches)
            return Aligned(even, self.switches) if self.switches else even
        if steps == self.steps and not (sigmas and self.full_at):
            return Mask(tuple(self.full_steps), self.steps)
        at, own = self._levels(steps, sigmas)
        return Mask(transfer_schedule(at, own), steps)

    def gain(self, step: int, steps: int, sigmas: Sequence[float] = ()) -> float:
        """The factor on the gains from this full step to the next."""
        if not self.segments:
            return 1.0
        at, levels = self._levels(steps, sigmas)
        return self.segments[min(range(len(at)), key=lambda i: abs(at[i] - levels[step]))]

    def _levels(self, steps: int, sigmas: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
        """Where the calibrated full steps are, and the steps of a request, on one scale."""
        if self.full_at and sigmas:
            return self.full_at, sigmas
        return uniform_levels(self.full_steps, self.steps), uniform_levels(range(steps), steps)
