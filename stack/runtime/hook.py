"""One call of the denoiser, from top to bottom."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.models.cache_utils import CacheMixin

from ..core.installer import BEHIND_HOOK, Installer
from ..models.schedule import sigma_schedule_of, source_of
from .arguments import Arguments
from .call import DenoiserCall
from .target import Target

NEAR = 0.01  # a host-side timestep further than this from the scheduler's sigma did not come from the pipeline's loop


def hook_denoiser(target: Target, install: Installer) -> None:
    """Let every call of the denoiser go through `_hooked`, the only wrapper around the denoiser itself."""
    # Behind an offloading hook of accelerate: before it weights and arguments are still on the host.
    place = BEHIND_HOOK if "_hf_hook" in vars(target.denoiser) else "forward"
    install.wrap_call(target.denoiser, place, partial(_hooked, target))
    if isinstance(target.denoiser, CacheMixin):  # a pipeline names its guidance branches only on such a model
        install.wrap_call(target.denoiser, "cache_context", partial(_context, target))


def _hooked(target: Target, inner: Callable[..., Any]) -> Callable[..., Any]:
    """The denoiser's forward with a stack on it: one call from top to bottom."""
    arguments, sigmas = Arguments(inner), _Sigmas(target)
    clock, journal, chain = target.clock, target.journal, target.chain

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        # A second pipeline on this model may come from another thread.
        with target.lock:
            given = arguments.named(args, kwargs) if args else kwargs
            latent = given["hidden_states"]
            # Which step of which request this is, in what compute mode; which samples run is filled in on the way.
            context = clock.advance(sigmas.of(given["timestep"], latent), tuple(latent.shape))
            # Its time and, read off the step context in the end, what it turned out to be.
            journal.begin(context, latent.device)
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
                target.conditions.end()
                journal.end()

    return forward


class _Sigmas:
    """Noise levels of calls, without a host sync where the pipeline's scheduler knows them."""

    def __init__(self, target: Target):
        self._target = target
        self._made: Any = None  # what the schedule was last read from; schedulers make a new one for each request
        self._version = 0

    def of(self, timestep: torch.Tensor, tokens: torch.Tensor) -> float:
        """Noise level of a call with these tokens (B, N, ...)."""
        pipe, clock, scale = self._target.pipe, self._target.clock, self._target.wiring.timestep_scale
        if pipe is None:
            return _first(timestep) / scale
        scheduler = pipe.scheduler
        made = vars(scheduler).get("sigmas")
        if made is None:
            made = source_of(scheduler)
        # Some callers write noise levels of their own into what the scheduler has made.
        version = 0 if made.is_inference() else made._version
        if made is not self._made or version != self._version:
            clock.sigma_schedule = sigma_schedule_of(scheduler, tokens.shape[1])
            self._made, self._version = made, version
        sigmas = clock.sigma_schedule.sigmas
        if "_step_index" not in vars(scheduler):  # DDIM keeps no count of its steps
            index = _place(timestep, scheduler.timesteps)
            return _first(timestep) / scale if index is None else sigmas[index]
        index = scheduler.step_index if scheduler.step_index is not None else scheduler.begin_index or 0
        known = sigmas[min(index, len(sigmas) - 1)]
        if timestep.device.type != "cpu":
            return known
        # A call around the pipeline's own loop: the scheduler's index is stale, the value is not.
        value = _first(timestep) / scale
        return known if abs(known - value) <= NEAR * max(value, NEAR) else value


def _first(timestep: torch.Tensor) -> float:
    """One sample's timestep; all samples of a call have the same."""
    return float(timestep if timestep.numel() == 1 else timestep.flatten()[0])


def _place(timestep: torch.Tensor, timesteps: torch.Tensor) -> int | None:
    """Which of the scheduler's timesteps a call's is a view of: known without a read. None where it is none."""
    if timestep.untyped_storage().data_ptr() != timesteps.untyped_storage().data_ptr():
        return None
    return int(timestep.storage_offset() - timesteps.storage_offset())


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
