"""One denoiser call: which step it is, and how much of it runs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from ..models.schedule import SigmaSchedule, Timetable

FULL, CACHED, PARTIAL = "full", "cached", "partial"


@dataclass(frozen=True)
class Computed:
    """What a denoiser call computed, in shares of what a full one does.

    Attributes:
        linears: of the linears inside the blocks, token by token: what counts as this much of a full step.
        attention: of the products with the attention matrix.
        rest: of what is outside the blocks.
    """

    linears: float = 1.0
    attention: float = 1.0
    rest: float = 1.0

    def beside(self, full: float) -> Computed:
        """Of a batch in which a share of the samples is computed in full, and this of the others."""
        return Computed(*(full + (1 - full) * share for share in (self.linears, self.attention, self.rest)))


ALL = Computed()
NO_BLOCK = Computed(0.0, 0.0)  # what runs on a step that skips all blocks
NOTHING = Computed(0.0, 0.0, 0.0)


@dataclass
class StepOutcome:
    """What a denoiser call turned out to be. Written by the cache of a stack; without one every call is full.

    Attributes:
        kind: FULL, CACHED or PARTIAL.
        computed: how much of a full call's work it did.
    """

    kind: str = FULL
    computed: Computed = ALL


@dataclass(frozen=True)
class CallPlace:
    """Which step a denoiser call is.

    Attributes:
        timetable: that the call is on; of one entry where its step is not known.
        at: index of its entry.
        driven: whether the pipeline's scheduler says so, and not only the call's timestep.
        why: why the step is not known; "" where it is.
        replayed: the step that the call is one of, where a measurement makes a call of an earlier request again.
    """

    timetable: Timetable
    at: int
    driven: bool = False
    why: str = ""
    replayed: StepContext | None = None


def unknown_place(level: float, why: str) -> CallPlace:
    """Of a call at this timestep, over the training's, whose step is not known: a schedule of its own."""
    return CallPlace(Timetable(SigmaSchedule((level,), known=False), (level,)), 0, why=why)


@dataclass(frozen=True)
class StepContext:
    """One denoiser call.

    Attributes:
        request: number of the request, unique within a stack: cached state never outlives it.
        branch: guidance branch by name ("cond", "uncond"). Where a step of an unnamed branch has several calls, those
            after the first have a number.
        step: index in the request's schedule; for calibrated masks.
        steps: length of the schedule.
        sigma: noise level.
        time: the schedule's own unshifted time u in [0, 1], the coordinate of every extrapolation.
        shape: shape of the latent tokens.
        page: number of the pipeline call that it belongs to, for the report. A request that breaks off in the middle
            of one is followed by another on the same page.
        at, whole: index in the sampler's whole schedule, and its length: image to image begins in its middle. These
            are for what depends on the noise level, `step` and `steps` for what continues from step to step.
        known: whether it is known which step it is. Where not, it is a request of one step.
        compute_mode: how this step is computed, one entry per pass that has several ways: dense or sparse, in which
            precision. Features of different modes differ by more than time.
        outcome: what it turned out to be.
        joined: step at which the branch came in. Later than the request's first where guidance begins in mid-run or
            goes on after a pause, and where another denoiser of the pipeline takes over. Nothing that was kept before
            is used then.
        part: the pipeline's name of the denoiser that is called, where it is not its first one.
    """

    request: int
    branch: str
    step: int
    steps: int
    sigma: float
    time: float
    shape: tuple[int, ...]
    page: int = 0
    at: int = 0
    whole: int = 1
    known: bool = True
    compute_mode: tuple[Hashable, ...] = ()
    outcome: StepOutcome = field(default_factory=StepOutcome, compare=False)
    joined: int = 0
    part: str = ""

    @property
    def is_first(self) -> bool:
        return self.step == 0

    @property
    def is_last(self) -> bool:
        return self.step == self.steps - 1


ComputeModes = tuple[Callable[[StepContext], Hashable], ...]
"""What makes the entries of `StepContext.compute_mode`, one function per pass."""
