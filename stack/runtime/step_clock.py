"""The step that a denoiser call belongs to: built once per call, read by every pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ..models.schedule import SigmaSchedule, Timetable

MAIN = "main"  # the branch of a pipeline that does not name its guidance branches
FULL, CACHED, PARTIAL = "full", "cached", "partial"
USED_BEFORE = (
    "calls at timesteps of a schedule that has served a whole run: call scheduler.set_timesteps() for every run, "
    "or build the stack on the pipeline that is called"
)


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
        active_set: which samples and tokens of the call run.
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
    active_set: ActiveSet = field(default_factory=ActiveSet, compare=False)
    joined: int = 0
    part: str = ""

    @property
    def is_first(self) -> bool:
        return self.step == 0

    @property
    def is_last(self) -> bool:
        return self.step == self.steps - 1


@dataclass(frozen=True)
class ReadFrom:
    """What a timetable was last read from, by whichever denoiser of the pipeline was called first.

    Attributes:
        made: the scheduler's; it makes another one for each request.
        version: of that tensor.
        begun: whether that was a schedule at all.
    """

    made: Any = None
    version: int = 0
    begun: bool = True

    def still(self, made: Any, version: int) -> bool:
        """Whether it is the same."""
        return made is self.made and version == self.version


ComputeModes = tuple[Callable[[StepContext], Hashable], ...]
"""What makes the entries of `StepContext.compute_mode`, one function per pass."""


class Clock:
    """Follows a model through its requests.

    A call continues a request when it is that branch's next step; anything else starts a new one. Nothing is counted
    across requests, so that an aborted request, a second pipeline call or a new resolution is never taken for a
    continuation.

    Attributes:
        context: the current call's step, or the last one's.
        active_set: of the same call.
        running: whether a call is under way.
        timetable, read: of the sampler, as last read, and what from.
        sigma_schedule: of the current request: the timetable's from the step on that the request began with.
        replaying: of every call, while `replay` is on.
    """

    def __init__(self, timetable: Timetable) -> None:
        self.branch, self._part = MAIN, ""
        self.context: StepContext | None = None
        self.running = False
        self.active_set = ActiveSet()
        self.timetable, self.read = timetable, ReadFrom()
        self.sigma_schedule = timetable.schedule
        self._on = timetable  # what the current request's calls are on
        self._requests = 0
        self._at: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._joined: dict[str, int] = {}
        self._pages = 0
        self.replaying: CallPlace | None = None
        self._last: CallPlace | None = None  # of the page's last call
        self._kept_open = False
        self._driven: Timetable | None = None  # of the pipeline call that goes on
        self._spent: Timetable | None = None  # of one that is over

    def restart(self) -> None:
        """The next call starts a request, whatever its step."""
        self._forget_branches()
        self._last = self._last if self._kept_open else None

    def _forget_branches(self) -> None:
        for known in (self._at, self._shapes, self._joined):
            known.clear()

    @contextmanager
    def one_page(self) -> Iterator[None]:
        """All calls inside are of one pipeline call."""
        self._kept_open, self._last = True, None
        self.restart()
        try:
            yield
        finally:
            self._kept_open, self._last = False, None

    @contextmanager
    def named(self, branch: str) -> Iterator[None]:
        """Calls inside are of this branch."""
        before, self.branch = self.branch, branch
        try:
            yield
        finally:
            self.branch = before

    @contextmanager
    def called_in(self, part: str) -> Iterator[None]:
        """Calls inside are of this denoiser, one of several of a pipeline."""
        self._part = part
        try:
            with self.named(part if self.branch == MAIN else f"{part}: {self.branch}"):
                yield
        finally:
            self._part = ""

    @property
    def took_over(self) -> bool:
        """Whether the current call is the first of its step, and of a branch that comes in there, in mid-run."""
        context = self.context
        if context is None or not context.joined == context.step > 0:
            return False
        return list(self._at.values()).count(context.at) == 1

    @property
    def called(self) -> bool:
        """Whether the denoiser has been called on this page."""
        return self._last is not None

    @contextmanager
    def replay(self, context: StepContext) -> Iterator[None]:
        """Calls inside are made again as they were made at this step."""
        level = (context.sigma,)
        self.replaying = CallPlace(Timetable(SigmaSchedule(level), level), 0, replayed=context)
        try:
            yield
        finally:
            self.replaying = None

    def expected(self, timetable: Timetable) -> int:
        """The step that would continue the current branch's request."""
        return self._at.get(self.branch, -1) + 1 if timetable is self._on else 0

    def follows(self, timetable: Timetable, at: int) -> bool:
        """Whether a call is known to be the next one of a branch."""
        return timetable is self._on and self._at.get(self._named(at)) == at - 1

    def turns_page(self, place: CallPlace) -> bool:
        """Whether a call is the first of its pipeline call: of a schedule just made, or further back than the last."""
        last = self._last
        if last is None or self._kept_open:
            return last is None
        if place.timetable is last.timetable:
            return place.at < last.at
        if place.driven and last.driven:
            return place.at != last.at + 1  # noise levels may be written into a scheduler in mid-run
        return place.timetable.timesteps[place.at] > last.timetable.timesteps[last.at]

    def admitted(self, place: CallPlace) -> tuple[CallPlace, bool]:
        """The place as it may be believed, and whether it turns the page.

        A schedule serves one pipeline call: schedulers make it anew for each. A call that would begin another run of
        one that has been used only looks like one of its steps, and belongs to something else.
        """
        turned = self.turns_page(place)
        if not place.driven:
            return place, turned
        if turned and place.timetable is self._driven:
            self._spent = place.timetable
        if place.timetable is not self._spent:
            self._driven = place.timetable
            return place, turned
        place = unknown_place(place.timetable.timesteps[place.at], USED_BEFORE)
        return place, self.turns_page(place)

    def advance(
        self,
        place: CallPlace,
        shape: tuple[int, ...],
        turned: bool | None = None,
        asks_same: Callable[[str], bool] = lambda branch: False,
        compute_modes: ComputeModes = (),
    ) -> StepContext:
        """A denoiser call at this place, on latent tokens of this shape, begins.

        Args:
            turned: what `turns_page` has said of it, if it has been asked.
            asks_same: whether the call asks for the same as the last one of a branch did.
            compute_modes: what makes the entries of `StepContext.compute_mode`.
        """
        if self.turns_page(place) if turned is None else turned:
            self._pages += 1
        self._last = place
        at, branch = place.at, self.branch
        if place.driven and place.timetable is self._on:
            branch = self._named(at, asks_same)
        goes_on = self._continues(place, branch)
        if self._shapes.get(branch, shape) != shape or not (goes_on or self._joins(place, branch)):
            self._requests += 1
            self._forget_branches()
            self._on, self.sigma_schedule = place.timetable, place.timetable.schedule.since(at)
        if not goes_on or branch not in self._joined:
            self._joined[branch] = at
        self._at[branch], self._shapes[branch] = at, shape
        schedule = self.sigma_schedule
        step = at - schedule.begin
        context = StepContext(
            request=self._requests,
            page=self._pages,
            branch=branch,
            step=step,
            steps=len(schedule.sigmas),
            sigma=schedule.sigmas[step],
            time=schedule.times[step],
            shape=shape,
            at=at,
            whole=len(place.timetable.timesteps),
            known=schedule.known,
            joined=self._joined[branch] - schedule.begin,
            part=self._part,
        )
        if place.replayed is not None:
            own: dict[str, Any] = {"request": context.request, "page": context.page, "shape": shape}
            context = replace(place.replayed, **own, compute_mode=(), active_set=ActiveSet())
        if compute_modes:
            context = replace(context, compute_mode=tuple(of(context) for of in compute_modes))
        self.context, self.active_set, self.running = context, context.active_set, True
        return context

    def _continues(self, place: CallPlace, branch: str) -> bool:
        return place.timetable is self._on and not place.why and self._at.get(branch) == place.at - 1

    def _joins(self, place: CallPlace, branch: str) -> bool:
        """Whether a branch that was not at the step before comes into the request, where others are."""
        if place.timetable is not self._on or place.why or not self._at:
            return False
        previous = self._at.get(branch)
        if not place.driven:  # a step that others have left is another request's
            return previous is None and place.at in self._at.values()
        # A scheduler makes a schedule for one request, in which a branch may begin late, pause, or be the first.
        return max(self._at.values()) in (place.at, place.at - 1) and (previous is None or previous < place.at)

    def _named(self, at: int, asks_same: Callable[[str], bool] = lambda branch: False) -> str:
        """The branch of a call under the current name; with a number where others of a step have the name too.

        Calls that a pipeline does not name are told apart by what they ask for, and only where that is new by their
        order. This is for calls that a scheduler drives: it is made anew for every request, so that a step seen twice
        is a second call of that step, and not the start of another request.
        """
        known = [name for name in self._at if name == self.branch or name.startswith(f"{self.branch} (")]
        if len(known) > 1:
            waiting = sorted((name for name in known if self._at[name] < at), key=lambda name: -self._at[name])
            if (same := next(filter(asks_same, waiting), None)) is not None:
                return same
        name, number = self.branch, 1
        while self._at.get(name) == at:
            number += 1
            name = f"{self.branch} ({number})"
        return name
