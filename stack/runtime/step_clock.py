"""The step that a denoiser call belongs to: built once per call, read by every pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from ..models.schedule import SigmaSchedule

MAIN = "main"  # the branch of a pipeline that does not name its guidance branches
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
class ActiveSet:
    """How much of a denoiser call runs. Written by the cache of a stack, read by the passes below it and the journal.

    Attributes:
        cached: whether a cache decides what runs. Without one every step is full.
        full: whose step is full: one entry for each sample of the batch, or one for all. Empty until the cache has
            decided: what runs before, runs on every step.
        rows: the samples that the current call of a block is about; None for all.
        whole: whether it is about all of their tokens.
        kind: what the cache decided for the call as a whole: FULL, CACHED or PARTIAL.
        computed: how much of a full call's work it did.
    """

    cached: bool = False
    full: tuple[bool, ...] = (True,)
    rows: tuple[int, ...] | None = None
    whole: bool = True
    kind: str = FULL
    computed: Computed = ALL

    def wait(self) -> None:
        """A cache is there, and has not decided."""
        self.cached, self.full = True, ()

    def decide(self, full: Sequence[bool]) -> None:
        """Whose step is full."""
        self.cached, self.full = True, tuple(full)

    def is_full(self, row: int) -> bool:
        """Whether this is a full step of a sample."""
        if len(self.full) < 2:
            return self.full == (True,)
        return self.full[row] if row < len(self.full) else all(self.full)

    @contextmanager
    def part(self, rows: Sequence[int] | None, whole: bool = True) -> Iterator[None]:
        """What runs inside is about these samples of the batch."""
        before = self.rows, self.whole
        self.rows, self.whole = None if rows is None else tuple(rows), whole
        try:
            yield
        finally:
            self.rows, self.whole = before


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
        compute_mode: what passes that compute some steps otherwise say of this one: dense or sparse, in which
            precision. Features of unlike modes differ by more than time.
        active_set: which samples and tokens of the call run.
    """

    request: int
    branch: str
    step: int
    steps: int
    sigma: float
    time: float
    shape: tuple[int, ...]
    compute_mode: tuple[Hashable, ...] = ()
    active_set: ActiveSet = field(default_factory=ActiveSet, compare=False)

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
        step context: the current call's step, or the last one's.
        active_set: of the same call.
        compute_modes: what makes the entries of `StepContext.compute_mode`, one function per pass.
    """

    def __init__(self, sigma_schedule: SigmaSchedule) -> None:
        self.branch = MAIN
        self.compute_modes: tuple[Callable[[StepContext], Hashable], ...] = ()
        self.context: StepContext | None = None
        self.active_set = ActiveSet()
        self.sigma_schedule = sigma_schedule
        self._requests = 0
        self._at: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()

    def schedule(self, sigmas: tuple[float, ...], shift: float) -> None:
        """Set the timetable of the coming calls."""
        self.sigma_schedule = SigmaSchedule(sigmas, shift)

    def restart(self) -> None:
        """The next call starts a request, whatever its noise level."""
        self._at.clear()

    def advance(self, sigma: float, shape: tuple[int, ...]) -> StepContext:
        """A denoiser call at this noise level, on latent tokens of this shape, begins."""
        schedule, branch = self.sigma_schedule, self.branch
        step, time = schedule.places.get(sigma) or (schedule.step(sigma), schedule.time(sigma))
        previous = self._at.get(branch)
        # A branch not seen yet joins when another branch is at this very step.
        continues = step in self._at.values() if previous is None else step == previous + 1
        if not continues or shape != self._shape:
            self._requests += 1
            self._at.clear()
        self._at[branch], self._shape = step, shape
        context = StepContext(self._requests, branch, step, len(schedule.sigmas), sigma, time, shape)
        if self.compute_modes:
            context = replace(context, compute_mode=tuple(of(context) for of in self.compute_modes))
        self.context, self.active_set = context, context.active_set
        return context
