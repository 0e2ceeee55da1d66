"""Which step a denoiser call is: a context built once per call, read by every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ..models.schedule import SigmaSchedule, Timetable
from .step import CallPlace, ComputeModes, StepContext, StepOutcome, unknown_place

MAIN = "main"  # the branch of a pipeline that does not name its guidance branches
USED_BEFORE = (
    "calls at timesteps of a schedule that has served a whole run: call scheduler.set_timesteps() for every run, "
    "or build the stack on the pipeline that is called"
)


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


class Clock:
    """Follows a model through its requests.

    A call continues a request when it is that branch's next step; anything else starts a new one. Nothing is counted
    across requests, so that an aborted request, a second pipeline call or a new resolution is never taken for a
    continuation.

    Attributes:
        context: the current call's step, or the last one's.
        running: whether a call is under way.
        samples: of the batch, that the running block computes; () for all.
        took_over: whether the current call is the first of its step, and of a branch that comes in there, in mid-run.
        timetable, read: of the sampler, as last read, and what from.
        sigma_schedule: of the current request: the timetable's from the step on that the request began with.
        replaying: of every call, while `replay` is on.
    """

    def __init__(self, timetable: Timetable) -> None:
        self.branch, self._part = MAIN, ""
        self.context: StepContext | None = None
        self.running = self.took_over = False
        self.samples: tuple[int, ...] = ()
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
    def only(self, samples: Sequence[int]) -> Iterator[None]:
        """What runs inside computes these samples of the batch only."""
        before, self.samples = self.samples, tuple(samples)
        try:
            yield
        finally:
            self.samples = before

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
        if place.driven and place.timetable is self._on and (len(self._at) > 1 or self._at.get(branch) == at):
            branch = self._named(at, asks_same)
        goes_on = self._continues(place, branch)
        if self._shapes.get(branch, shape) != shape or not (goes_on or self._joins(place, branch)):
            self._requests += 1
            self._forget_branches()
            self._on, self.sigma_schedule = place.timetable, place.timetable.schedule.since(at)
        if not goes_on or branch not in self._joined:
            self._joined[branch] = at
        self._at[branch], self._shapes[branch] = at, shape
        schedule, joined = self.sigma_schedule, self._joined[branch]
        step = at - schedule.begin
        self.took_over = joined == at > schedule.begin and list(self._at.values()).count(at) == 1
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
            joined=joined - schedule.begin,
            part=self._part,
        )
        if place.replayed is not None:
            own: dict[str, Any] = {"request": context.request, "page": context.page, "shape": shape}
            context = replace(place.replayed, **own, compute_mode=(), outcome=StepOutcome())
        if compute_modes:
            context = replace(context, compute_mode=tuple(of(context) for of in compute_modes))
        self.context, self.running = context, True
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
