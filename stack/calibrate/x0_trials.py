"""Recording and trial runs for the site "clean", which stands before the denoiser rather than before its blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..caching.cache import Cache
from ..caching.candidate import Candidate
from ..caching.latent import like, returned_as, tokens_of, x0_of
from ..core.installer import Installer
from ..core.passes import Applied
from ..models.sampler import AffineStep, planned_steps
from ..runtime.call import DenoiserCall, Proceed
from ..runtime.step_clock import Clock
from ..runtime.target import Target
from .rehearse import Rehearsals, history
from .standin import StandIn
from .trajectory import Trajectory, sampled


@dataclass(frozen=True)
class X0Recorder(StandIn):
    """In a cache's place for one run: steps are full, and the latents are written down.

    Attributes:
        reused: steps that reuse the last estimate instead: a small disturbance, whose course is then seen.
    """

    trajectory: Trajectory
    reused: tuple[int, ...] = ()

    def apply(self, target: Target, install: Installer) -> Applied:
        """Stand before the denoiser."""
        writer = _X0Writer(
            target, planned_steps(target.pipe, lambda: target.clock.sigma_schedule), self.trajectory, self.reused
        )
        target.chain.add(install, writer)
        return Applied("recording")


@dataclass
class _X0Writer:
    target: Target
    steps: Callable[[], list[AffineStep]]
    trajectory: Trajectory
    reused: tuple[int, ...]
    _last: dict[str, torch.Tensor] = field(default_factory=dict)

    def intercept(self, call: DenoiserCall, proceed: Proceed) -> Any:
        tick = self.target.clock.tick
        assert tick is not None
        step, x = self.steps()[tick.step], call.latent.float()
        if self.trajectory.holds(tick.branch):
            self.trajectory.inputs.append(sampled(tokens_of(x)))
            self.trajectory.ticks.append(tick)
        if tick.step in self.reused:
            clean = self._last[tick.branch]
            return returned_as(call, ((like(clean, x) - step.c * x) / step.d).to(call.latent.dtype))
        result = proceed(call)
        self._last[tick.branch] = x0_of(step, x, result[0].float())
        return result


@dataclass(frozen=True)
class X0Rehearsal(StandIn):
    """A trial of a candidate at the site "clean"; see `stack.calibrate.rehearse.Rehearsal`.

    None is given up on its way: correctors make up later for what was far off in the middle.
    """

    cache: Cache
    candidate: Candidate
    shared: Rehearsals

    def apply(self, target: Target, install: Installer) -> Applied:
        """The cache as it would stand, with a memory of full steps between it and the denoiser."""
        target.chain.add(install, _Remembering(target.clock, self.candidate, self.shared))
        return self.cache.apply(target, install)


@dataclass
class _Remembering:
    """Answers full steps that another trial has run already."""

    clock: Clock
    candidate: Candidate
    shared: Rehearsals

    def intercept(self, call: DenoiserCall, proceed: Proceed) -> Any:
        tick = self.clock.tick
        assert tick is not None
        key = (tick.branch, *history(self.candidate, tick.step))
        known = self.shared.recall(key)
        if known is not None:
            return returned_as(call, known["out"])
        result = proceed(call)
        self.shared.remember(key, "out", result[0], len(self.candidate.full_steps))
        return result
