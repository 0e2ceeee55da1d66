"""One call of the denoiser, from top to bottom."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from ..compat.rules.state import OTHER_CONDITIONS, STEP_UNKNOWN
from ..core import readback
from ..core.arguments import Arguments
from ..core.installer import BEHIND_HOOK, Installer
from ..models.sampler import KnownSampler
from ..models.schedule import CLOSE, Timetable, fits, timetable_of, was_made
from ..models.timestep import of_noisy_tokens, place_in, precision_of, same_for_all
from .call import DenoiserCall, batch_of
from .step import CallPlace, unknown_place
from .step_clock import ReadFrom
from .target import Target

NO_SCHEDULE = (
    "calls while the pipeline's own scheduler has made no schedule: build the stack on the pipeline that is called"
)


UNITS = (1.0, 1000.0, -1.0, -1000.0)  # of the time that denoisers are given, with a minus sign for what is left to 1


def level_of(time: float, scale: float) -> float:
    """The noise level of a time in this unit; with a minus sign time counts up to the clean sample."""
    return time / scale if scale > 0 else 1 + time / scale


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
    name, time = target.wiring.latent, target.wiring.time
    several = target.wiring.beside, target.wiring.returns

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        # A second pipeline on this model may come from another thread.
        with target.lock:
            given = arguments.named(args, kwargs) if args else kwargs
            latent = given[name]
            if isinstance(latent, list):
                if len({sample.shape for sample in latent}) > 1:
                    journal.warn("samples of several sizes in one call: it runs as if there were no stack")
                    return inner(*args, **kwargs)
                latent = batch_of(latent)
            # Which step this is, asked of the scheduler.
            place = clock.replaying or steps.of(given[time], latent)
            before, (place, turns_page) = clock.context, clock.admitted(place)
            notes: Sequence[str] = ()
            if turns_page:
                # A pipeline call begins: the passes are planned for as many steps as it has.
                unknown = place.why or place.replayed
                notes = target.prepare(0 if unknown else len(place.timetable.timesteps) - place.at)
            # Of which request, in what compute mode; which samples run is filled in on the way.
            same = partial(target.conditions.asks_same, given=given)
            context = clock.advance(place, tuple(latent.shape), turns_page, same, target.compute_modes)
            if clock.took_over:
                target.taken_over()
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
                run = partial(inner, *args, **kwargs)
                if isinstance(given[name], list):
                    call = DenoiserCall(partial(_stacked, run), given, name, steps.backwards)
                    return _listed(chain.run(call), given)
                return chain.run(DenoiserCall(run, given, name, steps.backwards, *several))
            except BaseException:
                # Half a step leaves nothing that may be reused, and memory may be what it broke off for.
                target.forget()
                raise
            finally:
                clock.running = False
                target.conditions.end()
                journal.end()

    return _of_part(target, forward) if target.part else forward


def _of_part(target: Target, forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a denoiser that is not its pipeline's first: its branches have its name in front."""

    @functools.wraps(forward)
    def called(*args: Any, **kwargs: Any) -> Any:
        with target.lock, target.clock.called_in(target.part):
            return forward(*args, **kwargs)

    return called


def _stacked(run: Callable[..., Any], **given: Any) -> tuple[torch.Tensor]:
    """What a denoiser of lists returns, as one tensor, batch first."""
    return (batch_of(run(**given)[0]),)


def _listed(result: Any, given: Mapping[str, Any]) -> Any:
    """The inverse, as the caller expects it."""
    samples = list(result[0].unbind())
    return Transformer2DModelOutput(sample=samples) if given.get("return_dict", True) else (samples,)


@dataclass
class _StepReader:
    """Which step a call is: asked of the scheduler that drives it, and checked against what the call says.

    Nothing is read from an accelerator where the scheduler keeps count.
    """

    target: Target
    backwards: bool = False  # whether the time of calls counts up to the clean sample
    _scale: float = 0.0  # what the last call's time was divided by, where the wiring leaves that open

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
        if made is not clock.read.made or version != clock.read.version:
            if isinstance(scheduler, KnownSampler):
                scheduler.begins(latent[0].numel())
            clock.timetable = timetable_of(scheduler, latent.shape[1])
            clock.read = ReadFrom(made, version, was_made(scheduler))
        if not clock.read.begun:
            return unknown_place(self._level(timestep.max()), NO_SCHEDULE)
        timetable, at = clock.timetable, own.get("_step_index")
        at = own.get("_begin_index") if at is None else at
        if at is not None and at >= len(timetable.timesteps):
            # The scheduler has run to its end.
            return unknown_place(self._level(timestep.max()), self._why_unknown(timetable))
        spread = timestep.numel() > 1 and any(timestep.stride())
        if at is None and not spread and (at := place_in(timestep, scheduler.timesteps)) is not None:
            return CallPlace(timetable, at, driven=True)
        if at is not None and timestep.device.type != "cpu" and clock.follows(timetable, at):
            return CallPlace(timetable, at, driven=True)  # reading the timestep would wait for the device
        return self._checked(timestep, timetable, clock.expected(timetable) if at is None else at, driven=True)

    def _checked(self, timestep: torch.Tensor, timetable: Timetable, at: int, driven: bool) -> CallPlace:
        """This step where it fits the call, else the one with this timestep."""
        own = timetable.timesteps
        if timestep.numel() > 1:
            free = readback.reads_are_free(timestep.device) or not self.target.clock.follows(timetable, at)
            if free and not same_for_all(timestep):
                noisy = of_noisy_tokens(timestep)
                if noisy is None:
                    return unknown_place(self._level(timestep.max()), "calls whose samples are at different timesteps")
                timestep = noisy
            timestep = timestep.flatten()[0]
        there = 0 <= at < len(own)
        scale = self.target.wiring.flow_scale
        value = float(timestep) / scale if scale else self._level(timestep, own[at] if there else own[0])
        if there and abs(own[at] - value) <= CLOSE * own[at]:
            return CallPlace(timetable, at, driven)
        precision = precision_of(timestep)
        if there and fits(own[at], value, precision):
            return CallPlace(timetable, at, driven)
        found = timetable.nearest(value, precision)
        if found is not None:
            return CallPlace(timetable, found, driven)
        return unknown_place(value, self._why_unknown(timetable))

    def _level(self, timestep: torch.Tensor, expected: float | None = None) -> float:
        """The noise level that a time names. Where its unit is not known, the one that gives what is expected."""
        time, scale = float(timestep), self.target.wiring.flow_scale or self._scale
        if not self.target.wiring.flow_scale and expected is not None:
            precision = precision_of(timestep)
            fitting = (s for s in (self._scale, *UNITS) if s and fits(expected, level_of(time, s), precision))
            scale = self._scale = next(fitting, scale)
            self.backwards = scale < 0
        return level_of(time, scale or UNITS[0])

    def _why_unknown(self, timetable: Timetable) -> str:
        steps, pipe = len(timetable.timesteps), self.target.pipe
        if pipe is None:
            own = f"the {steps} steps of shift {timetable.schedule.shift:g} that this stack is built for"
            return f"calls at other noise levels than {own}: build it with the loop's own, Stack(model, steps=, shift=)"
        own = f"the {steps} that the pipeline's {type(pipe.scheduler).__name__} has made"
        return f"calls at other timesteps than {own}: build the stack on the pipeline that is called"


def _context(
    target: Target, inner: Callable[..., AbstractContextManager[None]]
) -> Callable[..., AbstractContextManager[None]]:
    @contextmanager
    def context(name: str, **place: Any) -> Iterator[None]:  # some pipelines say where their loop is, too
        with target.lock, target.clock.named(name), inner(name, **place):  # the branch is set once for all threads
            yield

    return context
