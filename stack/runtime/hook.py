"""One call of the denoiser, from top to bottom."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.models.cache_utils import CacheMixin

from ..compat.rules.state import OTHER_CONDITIONS, STEP_UNKNOWN
from ..core import readback
from ..core.installer import BEHIND_HOOK, Installer
from ..models.schedule import CLOSE, Timetable, fits, timetable_of, was_made
from ..models.timestep import place_in, precision_of, same_for_all
from .arguments import Arguments
from .call import DenoiserCall
from .step_clock import CallPlace, unknown_place
from .target import Target

NO_SCHEDULE = (
    "calls while the pipeline's own scheduler has made no schedule: build the stack on the pipeline that is called"
)


def hook_denoiser(target: Target, install: Installer) -> None:
    """Let every call of the denoiser go through `_hooked`, the only wrapper around the denoiser itself."""
    # Behind an offloading hook of accelerate: before it weights and arguments are still on the host.
    place = BEHIND_HOOK if "_hf_hook" in vars(target.denoiser) else "forward"
    install.wrap_call(target.denoiser, place, partial(_hooked, target))
    if isinstance(target.denoiser, CacheMixin):  # a pipeline names its guidance branches only on such a model
        install.wrap_call(target.denoiser, "cache_context", partial(_context, target))


def _hooked(target: Target, inner: Callable[..., Any]) -> Callable[..., Any]:
    """The denoiser's forward with a stack on it: one call from top to bottom."""
    clock, journal, chain = target.clock, target.journal, target.chain
    arguments, steps = Arguments(inner, target.denoiser), _StepReader(target)

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        # A second pipeline on this model may come from another thread.
        with target.lock:
            given = arguments.named(args, kwargs) if args else kwargs
            latent = given["hidden_states"]
            # Which step this is, asked of the scheduler.
            place = clock.replaying or steps.of(given["timestep"], latent)
            before, (place, turns_page) = clock.context, clock.admitted(place)
            notes: Sequence[str] = ()
            if turns_page:
                # A pipeline call begins: the passes are planned for as many steps as it has.
                unknown = place.why or place.replayed
                notes = target.prepare(0 if unknown else len(place.timetable.timesteps) - place.at)
            # Of which request, in what compute mode; which samples run is filled in on the way.
            context = clock.advance(place, tuple(latent.shape), turns_page)
            # Its time and, read off the step context in the end, what it turned out to be.
            journal.begin(context, latent.device)
            for note in notes:
                journal.warn(note)
            if place.why:
                journal.warn(STEP_UNKNOWN.annotate(f"{place.why}; they run in full"))
            elif before and before.known and before.request != context.request and not turns_page:
                journal.warn(OTHER_CONDITIONS.annotate("a step does not follow the one before it: it runs in full"))
            # What its features depend on. Read if a cache asks, to stamp what it keeps.
            target.conditions.begin(context, given)
            try:
                # Guards, corrector, the cache's site, and what other passes put there. Last comes the model.
                return chain.run(DenoiserCall(partial(inner, *args, **kwargs), given))
            except BaseException:
                # Half a step leaves nothing that may be reused, and memory may be what it broke off for.
                target.forget()
                raise
            finally:
                clock.running = False
                target.conditions.end()
                journal.end()

    return forward


@dataclass
class _StepReader:
    """Which step a call is: asked of the scheduler that drives it, and checked against what the call says.

    Nothing is read from an accelerator where the scheduler keeps count.
    """

    target: Target
    _made: Any = None  # what the timetable was last read from; schedulers make a new one for each request
    _version: int = 0
    _begun: bool = True  # whether that was a schedule at all

    def of(self, timestep: torch.Tensor, latent: torch.Tensor) -> CallPlace:
        """The place of a call with this timestep argument, on latent tokens (B, N, ...)."""
        clock, pipe = self.target.clock, self.target.pipe
        if pipe is None:
            return self._checked(timestep, clock.timetable, clock.expected(clock.timetable), driven=False)
        scheduler = pipe.scheduler
        own = vars(scheduler)
        made = own.get("sigmas")
        made = scheduler.timesteps if made is None else made
        # Some callers write noise levels of their own into what the scheduler has made.
        version = 0 if made.is_inference() else made._version
        if made is not self._made or version != self._version:
            clock.timetable, self._made, self._version = timetable_of(scheduler, latent.shape[1]), made, version
            self._begun = was_made(scheduler)
        if not self._begun:
            return unknown_place(float(timestep.max()) / self.target.wiring.timestep_scale, NO_SCHEDULE)
        timetable, at = clock.timetable, own.get("_step_index")
        at = own.get("_begin_index") if at is None else at
        if at is not None and at >= len(timetable.timesteps):
            level = float(timestep.max()) / self.target.wiring.timestep_scale
            return unknown_place(level, self._why_unknown(timetable))  # the scheduler has run to its end
        spread = timestep.numel() > 1 and any(timestep.stride())
        if at is None and not spread and (at := place_in(timestep, scheduler.timesteps)) is not None:
            return CallPlace(timetable, at, driven=True)
        if at is not None and timestep.device.type != "cpu" and clock.follows(timetable, at):
            return CallPlace(timetable, at, driven=True)  # reading the timestep would wait for the device
        return self._checked(timestep, timetable, clock.expected(timetable) if at is None else at, driven=True)

    def _checked(self, timestep: torch.Tensor, timetable: Timetable, at: int, driven: bool) -> CallPlace:
        """This step where it fits the call, else the one with this timestep."""
        scale, own = self.target.wiring.timestep_scale, timetable.timesteps
        if timestep.numel() > 1:
            free = readback.reads_are_free(timestep.device) or not self.target.clock.follows(timetable, at)
            if free and not same_for_all(timestep):
                return unknown_place(float(timestep.max()) / scale, "calls whose samples are at different timesteps")
            timestep = timestep.flatten()[0]
        value = float(timestep) / scale
        there = 0 <= at < len(own)
        if there and abs(own[at] - value) <= CLOSE * own[at]:
            return CallPlace(timetable, at, driven)
        precision = precision_of(timestep)
        if there and fits(own[at], value, precision):
            return CallPlace(timetable, at, driven)
        found = timetable.nearest(value, precision)
        if found is not None:
            return CallPlace(timetable, found, driven)
        return unknown_place(value, self._why_unknown(timetable))

    def _why_unknown(self, timetable: Timetable) -> str:
        steps, pipe = len(timetable.timesteps), self.target.pipe
        if pipe is None:
            own = f"the {steps} steps of shift {timetable.schedule.shift:g} that this stack is built for"
            return f"calls at other noise levels than {own}: build it with the loop's own, Stack(model, steps=, shift=)"
        own = f"the {steps} that the pipeline's {type(pipe.scheduler).__name__} has made"
        return f"calls at other timesteps than {own}: build the stack on the pipeline that is called"


def _context(
    target: Target, inner: Callable[[str], AbstractContextManager[None]]
) -> Callable[[str], AbstractContextManager[None]]:
    @contextmanager
    def context(name: str) -> Iterator[None]:
        with target.lock:  # the branch is set once for all threads
            before, target.clock.branch = target.clock.branch, name
            try:
                with inner(name):
                    yield
            finally:
                target.clock.branch = before

    return context
