"""Recording and trial runs for the site "x0", which stands before the denoiser rather than before its blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..caching.cache import Cache
from ..caching.candidate import Candidate
from ..caching.latent import output_of, tokens_of, x0_of
from ..core.installer import Installer
from ..core.passes import Applied
from ..runtime.call import DenoiserCall
from ..runtime.step import StepContext
from ..runtime.target import Target
from .observe import Observe, Run, answer_calls
from .rehearse import Rehearsals, history
from .trajectory import Trajectory, sampled


def x0_recorder(trajectory: Trajectory, reused: tuple[int, ...] = ()) -> Observe:
    """Steps are full, and the latents of one run are written down.

    Args:
        reused: steps that reuse the last estimate instead: a small disturbance, whose course is then seen.
    """
    last: dict[str, torch.Tensor] = {}

    def put_on(target: Target, install: Installer) -> None:
        sampler = target.sampler()

        def visit(call: DenoiserCall, run: Run, context: StepContext) -> Any:
            estimate, x = sampler().estimates[context.step], call.latent.float()
            if trajectory.holds(context):
                trajectory.inputs.append(sampled(tokens_of(x)))
                trajectory.contexts.append(context)
            if context.step in reused and context.branch in last:
                out = output_of(estimate, x, last[context.branch])
                return call.answer(out.to(call.latent.dtype))
            result = run(call)
            last[context.branch] = x0_of(estimate, x, call.made(result).float())
            return result

        answer_calls(target, install, visit)

    return Observe(put_on)


@dataclass(frozen=True)
class X0Rehearsal:
    """A trial of a candidate at the site "x0"; see `stack.calibration.rehearse.Rehearsal`.

    None is given up on its way: correctors make up later for what was far off in the middle.
    """

    cache: Cache
    candidate: Candidate
    shared: Rehearsals

    def put_on(self, target: Target, install: Installer) -> Applied:
        """The cache as it would stand, with a memory of full steps between it and the denoiser."""
        answer_calls(target, install, self._full)
        return self.cache.apply(target, install)

    def _full(self, call: DenoiserCall, run: Run, context: StepContext) -> Any:
        key = (context.branch, *history(self.candidate, context.step))
        known = self.shared.recall(key)
        if known is not None:
            return call.answer(known["out"])
        result = run(call)
        self.shared.remember(key, "out", call.made(result), len(self.candidate.full_steps))
        return result
