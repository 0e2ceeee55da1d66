"""A sampler's loop over a denoiser whose estimate of the clean sample is a given function of time, whatever it sees."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch

from stack.caching.cache import Cache
from stack.caching.controller import CacheController
from stack.caching.corrector import Corrector
from stack.core.installer import Installer
from stack.models.sampler import LinearSampler, linear_form
from stack.models.schedule import SigmaSchedule, of_flow
from stack.runtime.call import DenoiserCall, InterceptorChain, Proceed
from stack.runtime.step import CallPlace
from stack.runtime.step_clock import Clock

from ..samplers import first_noise, given_to_denoiser
from .rig import controller_of

SHAPE = (1, 3, 4, 4)
Clean = Callable[[float], torch.Tensor]


class Scheduled:
    """In a site's place: says which calls are full, sample by sample."""

    def __init__(self, controller: CacheController, full: Sequence[Collection[int]]):
        self.controller, self.full = controller, full

    def intercept(self, call: DenoiserCall, proceed: Proceed) -> Any:
        self.controller.begin(call.latent)
        for slot, full in zip(self.controller.slots, self.full, strict=True):
            slot.run = 0 if self.controller.now.step in full else slot.run + 1
        return proceed(call)


def latents(
    scheduler: Any,
    steps: int,
    clean: Clean,
    full: Sequence[Collection[int]] = (),
    order: int = 0,
    form: Callable[[LinearSampler], LinearSampler] = lambda form: form,
) -> list[torch.Tensor]:
    """The latent behind every call; cached calls get estimates that are off by anything.

    Args:
        clean: the true estimate by the share of calls still to come.
        full: calls that are full, of each sample of the batch; none for all, and one sample.
        order: of the corrector, 0 for none.
        form: what the corrector takes the sampler for.
    """
    scheduler.set_timesteps(steps)
    calls, known, batch = len(scheduler.timesteps), linear_form(scheduler), max(1, len(full))
    full = full or [range(calls)]
    clock = Clock(of_flow(SigmaSchedule(tuple(1 - call / calls for call in range(calls)))))
    controller, chain = controller_of(Cache("predictor-corrector").policy, clock), InterceptorChain()
    controller.per_sample = batch > 1
    chain.add(Installer(), Scheduled(controller, full))
    if order:
        chain.add(Installer(), Corrector(controller, lambda: form(known), order))
    numbers, x, seen = (
        torch.Generator().manual_seed(9),
        first_noise(scheduler, SHAPE).float().repeat(batch, 1, 1, 1),
        [],
    )
    for call, (estimate, t) in enumerate(zip(known.estimates, scheduler.timesteps, strict=True)):
        wild = torch.randn(SHAPE, generator=numbers)
        x0 = torch.cat([clean(1 - call / calls) if call in mask else wild for mask in full])

        def denoiser(given: torch.Tensor, x0: torch.Tensor = x0, c: float = estimate.c, d: float = estimate.d) -> Any:
            return ((x0 - c * given) / d,)

        given = given_to_denoiser(scheduler, x, t)
        clock.advance(CallPlace(clock.timetable, call), tuple(x.shape))
        out = chain.run(DenoiserCall(partial(denoiser, given), {"hidden_states": given, "return_dict": False}))[0]
        x = scheduler.step(out, t, x, return_dict=False)[0]
        seen.append(x)
    return seen
