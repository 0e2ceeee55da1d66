"""Which request, which guidance branch, which step: told to every pass, once per denoiser call."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from ..models.schedule import SigmaSchedule
from .active_set import ActiveSet

MAIN = "main"  # the branch of a pipeline that does not name its guidance branches


@dataclass(frozen=True)
class StepContext:
    """One denoiser call.

    Attributes:
        request: number of the request, unique within a stack.
        branch: guidance branch by name ("cond", "uncond").
        step: index in the request's schedule; for display and for calibrated masks.
        steps: length of the schedule.
        sigma: noise level.
        time: the schedule's own unshifted time u in [0, 1], the coordinate of every extrapolation.
        shape: shape of the latent tokens.
    """

    request: int
    branch: str
    step: int
    steps: int
    sigma: float
    time: float
    shape: tuple[int, ...]

    @property
    def is_first(self) -> bool:
        return self.step == 0

    @property
    def is_last(self) -> bool:
        return self.step == self.steps - 1


class Clock:
    """Follows a model through its requests.

    A call continues a request when it is that branch's next step; anything else starts a new one. Nothing is counted
    across requests, so that an aborted request, a second pipeline call or a new resolution is never taken for a
    continuation.

    Attributes:
        extent: how much of the current call the blocks are working on.
        compute_modes: what passes that compute some steps otherwise say of a step: dense or sparse, in which precision.
    """

    def __init__(self, sigma_schedule: SigmaSchedule) -> None:
        self.branch = MAIN
        self.compute_modes: tuple[Callable[[StepContext], Hashable], ...] = ()
        self.tick: StepContext | None = None
        self.active_set = ActiveSet()
        self.sigma_schedule = sigma_schedule
        self._requests = 0
        self._at: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()

    @property
    def compute_mode(self) -> tuple[Hashable, ...]:
        """How the current step is computed: features of unlike phases differ by more than time."""
        return tuple(of(self.tick) for of in self.compute_modes) if self.tick is not None else ()

    def schedule(self, sigmas: tuple[float, ...], shift: float) -> None:
        """Set the timetable of the coming calls."""
        self.sigma_schedule = SigmaSchedule(sigmas, shift)

    def restart(self) -> None:
        """The next call starts a request, whatever its noise level."""
        self._at.clear()

    def advance(self, sigma: float, shape: tuple[int, ...]) -> StepContext:
        """A denoiser call at this noise level, on latent tokens of this shape, begins."""
        step = self.sigma_schedule.step(sigma)
        previous = self._at.get(self.branch)
        # A branch not seen yet joins when another branch is at this very step.
        continues = step in self._at.values() if previous is None else step == previous + 1
        if not continues or shape != self._shape:
            self._requests += 1
            self._at.clear()
        self._at[self.branch], self._shape = step, shape
        self.active_set = ActiveSet()
        self.tick = StepContext(
            request=self._requests,
            branch=self.branch,
            step=step,
            steps=len(self.sigma_schedule.sigmas),
            sigma=sigma,
            time=self.sigma_schedule.time(sigma),
            shape=shape,
        )
        return self.tick
