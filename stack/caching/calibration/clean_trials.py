"""Recording and trial runs for the site "clean", which stands before the denoiser rather than before its blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ...entrance import DenoiserCall
from ...install import Installer
from ...models.sampler import AffineStep, planned_steps
from ...passes.base import Applied, Target
from ...passes.cache import Cache
from ..latent import clean_of, like, returned_as, tokens_of
from .rehearse import Rehearsals, history
from .search import Candidate
from .standin import StandIn
from .trajectory import Trajectory, sampled

Run = Callable[[DenoiserCall], Any]


@dataclass(frozen=True)
class CleanRecorder(StandIn):
    """In a cache's place for one run: steps are full, and the latents are written down.

    Attributes:
        reused: steps that reuse the last estimate instead: a small disturbance, whose course is then seen.
    """

    trajectory: Trajectory
    reused: tuple[int, ...] = ()

    def apply(self, target: Target, install: Installer) -> Applied:
        """Stand before the denoiser."""
        writer = _Writer(target, planned_steps(target.pipe, target.clock), self.trajectory, self.reused)
        install.wrap_call(target.entrance, "run", lambda inner: lambda call: writer.visit(call, inner))
        return Applied("recording")


@dataclass
class _Writer:
    target: Target
    steps: Callable[[], list[AffineStep]]
    trajectory: Trajectory
    reused: tuple[int, ...]
    _last: dict[str, torch.Tensor] = field(default_factory=dict)

    def visit(self, call: DenoiserCall, run: Run) -> Any:
        tick = self.target.clock.tick
        assert tick is not None
        step, x = self.steps()[tick.step], call.latent.float()
        if self.trajectory.holds(tick.branch):
            self.trajectory.inputs.append(sampled(tokens_of(x)))
            self.trajectory.ticks.append(tick)
        if tick.step in self.reused:
            clean = self._last[tick.branch]
            return returned_as(call, ((like(clean, x) - step.c * x) / step.d).to(call.latent.dtype))
        result = run(call)
        self._last[tick.branch] = clean_of(step, x, result[0].float())
        return result


@dataclass(frozen=True)
class CleanRehearsal(StandIn):
    """A trial of a candidate at the site "clean"; see `stack.caching.calibration.rehearse.Rehearsal`.

    None is given up on its way: correctors make up later for what was far off in the middle.
    """

    cache: Cache
    candidate: Candidate
    shared: Rehearsals

    def apply(self, target: Target, install: Installer) -> Applied:
        """The cache as it would stand, with a memory of full steps between it and the denoiser."""

        def remembering(inner: Run) -> Run:
            return lambda call: self._full(call, inner, target)

        install.wrap_call(target.entrance, "run", remembering)
        return self.cache.apply(target, install)

    def _full(self, call: DenoiserCall, run: Run, target: Target) -> Any:
        tick = target.clock.tick
        assert tick is not None
        key = (tick.branch, *history(self.candidate, tick.step))
        known = self.shared.recall(key)
        if known is not None:
            return returned_as(call, known["out"])
        result = run(call)
        self.shared.remember(key, "out", result[0], len(self.candidate.full_steps))
        return result
