"""What a calibration is asked for: a number of full steps, a quality, or a time; and how many full steps that takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..caching.candidate import WHOLE, Candidate
from ..caching.noise_schedule import best_places, least_error
from ..core.errors import StackError
from ..core.validate import check_fields
from .search import through

if TYPE_CHECKING:
    from .trials import Times, Trials


@dataclass(frozen=True)
class Goal:
    """One of these; 0 is not asked for.

    Attributes:
        full_steps: so many steps are full.
        min_psnr: as few full steps as reach this PSNR in dB against the uncached stack, mean over the pictures.
        max_seconds: as many full steps as one picture can have in this time.

    Raises:
        StackError: more than one is given, or a negative one.
    """

    full_steps: int = 0
    min_psnr: float = 0.0
    max_seconds: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "goal")
        given = [f"{name}={value:g}" for name, value in vars(self).items() if value]
        if len(given) > 1:
            raise StackError(f"expected one of full_steps, min_psnr and max_seconds, got {' and '.join(given)}")
        if min(vars(self).values()) < 0:
            raise StackError(f"a goal must be positive, got {given[0]}")

    @property
    def words(self) -> str:
        """What is asked for, as it was given."""
        return ", ".join(f"{name}={value:g}" for name, value in vars(self).items() if value)

    def checked(self, steps: int) -> Goal:
        """This goal, for a request of so many steps.

        Raises:
            StackError: an impossible number of full steps.
        """
        if self.full_steps and not 2 <= self.full_steps < steps:
            raise StackError(f"full_steps must be in 2..{steps - 1}, got {self.full_steps}")
        return self

    def or_as_before(self, full_steps: float) -> Goal:
        """This goal, or as many full steps as there are now where nothing is asked for."""
        return self if self.words else Goal(full_steps=math.ceil(full_steps))


def count_in(seconds: float, times: Times, steps: int) -> int:
    """The most full steps of `steps` whose run takes no longer than this.

    Raises:
        StackError: not even two do, or the uncached run does as well.
    """
    if times.uncached <= seconds:
        raise StackError(f"the uncached run takes {times.uncached:.2f} s: expected less than that, got {seconds:g} s")
    count = math.floor((seconds - steps * times.cached) / (times.full - times.cached))
    if count < 2:
        least = 2 * times.full + (steps - 2) * times.cached
        raise StackError(f"2 of {steps} full steps take {least:.2f} s: expected at least that, got {seconds:g} s")
    return min(count, steps - 1)


def full_steps_for(goal: Goal, trials: Trials) -> int:
    """The number of full steps that a goal other than a PSNR takes."""
    return goal.full_steps or count_in(goal.max_seconds, trials.times, trials.steps)


def guess(psnr: float, trials: Trials) -> int:
    """The least number of full steps that is expected to reach a PSNR.

    One trial relates the errors of Gaussian data to measured ones; without noise levels it is the number of that trial.
    """
    steps, own = trials.steps, trials.cache.policy
    middle = max(2, steps // 5)
    if not trials.levels:
        return middle
    template = replace(Candidate.of(own, ()), gains=WHOLE, order=1, corrected=trials.correctable)

    def expected(count: int) -> float:
        error = least_error(count, trials.levels, template.order, template.corrected)
        return -10 * math.log10(max(error, 1e-30))

    places = best_places(middle, trials.levels, template.order, template.corrected)
    offset = trials.score(replace(template, full_steps=through(places, trials.always))) - expected(middle)
    return next((count for count in range(2, steps) if offset + expected(count) >= psnr), steps - 1)
