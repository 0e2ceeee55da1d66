"""Where on a ladder the solver takes its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..caching.noise_schedule import best_places
from ..caching.schedules import Count
from ..compat.horizon import transfer_schedule, uniform_levels
from ..core.progress import counted
from ..models.sampler import LinearSampler
from ..models.schedule import SigmaSchedule
from .numbers import Corrections, corrected, placed_form

SAME_SIZE = 1.1  # times as many numbers in a latent: other shapes of about as many pixels
Levels = Sequence[tuple[float, float]]
"""(unshifted time, log of signal over noise) of every step; () where unknown."""


@dataclass(frozen=True)
class Places:
    """The solver's places on the ladder of a call.

    Attributes:
        count: how many; at most as many as a ladder has distinct noise levels.
        order: of the solver.
        asked: places on the ladder that they were found on; () for the best ones.
        found_on: levels of that ladder, () where unknown.
        steps: its length.
        corrections: of the weights of its steps, fitted on that ladder; () for none.
        latent: numbers in a sample's latent that they were fitted on; 0 where not known.
    """

    count: int
    order: int = 2
    asked: tuple[int, ...] = ()
    found_on: tuple[tuple[float, float], ...] = ()
    steps: int = 0
    corrections: Corrections = ()
    latent: int = 0

    def on(self, levels: Levels, steps: int) -> tuple[int, ...]:
        """The places on a ladder of `steps` steps with these levels."""
        known = len(levels) == steps
        if steps <= self.count:
            return tuple(range(steps))
        if self.asked:
            at = self._transferred([time for time, _ in levels] if known else uniform_levels(range(steps), steps))
            if len(at) == self.count:
                return at
            # Places that fall together: the ladder has few steps there, and other steps are better than fewer.
        if not known:
            return tuple(sorted(Count(self.count).full_steps(steps)))
        distinct = tuple(dict.fromkeys(levels))  # samplers may look twice at a noise level
        at = best_places(min(self.count, len(distinct)), distinct)
        return tuple(levels.index(distinct[place]) for place in at)

    def _transferred(self, times: Sequence[float]) -> tuple[int, ...]:
        if len(times) == self.steps:
            return self.asked
        known = len(self.found_on) == self.steps
        own = [time for time, _ in self.found_on] if known else uniform_levels(range(self.steps), self.steps)
        return transfer_schedule([own[place] for place in self.asked], times)

    def plan(self, ladder: SigmaSchedule, own: LinearSampler, latent: int = 0) -> tuple[tuple[int, ...], LinearSampler]:
        """The places on a ladder, and the solver's numbers there; see `stack.solver.scheduler`."""
        places = self.on(ladder.levels, len(ladder.sigmas))
        form = placed_form(own, places, ladder.times, self.order, after=2 if self.order == 2 else 0)
        as_fitted = self.corrections and not self.fitted_elsewhere(len(ladder.sigmas), latent)
        return places, corrected(form, self.corrections) if as_fitted else form

    def fitted_elsewhere(self, steps: int, latent: int) -> str:
        """What a call has otherwise than those that the corrections were fitted on, or ""."""
        found = [f"{counted(self.steps, 'step')}, the call had {steps}"] if steps != self.steps else []
        known = self.latent and latent
        if known and not 1 / SAME_SIZE <= latent / self.latent <= SAME_SIZE:
            found.append(f"latents of {self.latent} numbers, the call had {latent}")
        return " and ".join(found)
