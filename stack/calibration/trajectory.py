"""Uncached trajectories, recorded once: what gates are fitted on and how far off trial runs are."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch

from ..caching.sites.calls import BlockCall
from ..core.installer import Installer
from ..models.ports import Streams
from ..runtime.step import StepContext
from ..runtime.target import Target
from .observe import Observe, answer_blocks

SAMPLED_TOKENS = 128  # of the output stream: norms and changes are averaged over them anyway


@dataclass
class Trajectory:
    """The last hidden state of a batch of uncached requests, at some tokens, step by step.

    Where guidance branches are calls of their own, the first one stands for all. Where two denoisers take turns each
    step is that of the one that has it; where both are called in every step, the first one stands for both.

    Attributes:
        features: one (B, n, D) per step.
        contexts: one per step, reused ones included.
        inputs: one (B, n, D) per step, the output stream before the first block: the embedded latents.
        modulated: one (B, n, D) per step, the first block's modulated input; none where the model's is not known.
    """

    features: list[torch.Tensor] = field(default_factory=list)
    contexts: list[StepContext] = field(default_factory=list)
    inputs: list[torch.Tensor] = field(default_factory=list)
    modulated: list[torch.Tensor] = field(default_factory=list)

    def holds(self, context: StepContext) -> bool:
        """Whether this call is the one of its step that is written down."""
        known = next((one for one in self.contexts if one.part == context.part), None)
        if known is not None:
            return known.branch == context.branch
        last = self.contexts[-1] if self.contexts else None
        return last is None or (last.request, last.step) != (context.request, context.step)

    @property
    def takeovers(self) -> tuple[int, ...]:
        """Steps at which another denoiser takes over: nothing kept serves there, so that they always run in full."""
        return tuple(context.step for before, context in pairwise(self.contexts) if context.part != before.part)


@dataclass
class FeatureRecorder:
    """Steps are full, and the last hidden state of each is written down. For one run.

    Attributes:
        reused: steps that reuse the last feature instead, as cached ones do.
    """

    trajectory: Trajectory
    reused: tuple[int, ...] = ()
    _last: dict[str, Streams] = field(default_factory=dict)

    def put_on(self, target: Target, install: Installer) -> None:
        """Answer the blocks' calls."""
        wiring = target.wiring
        stream, last = wiring.output_stream, len(wiring.blocks(target.denoiser)) - 1

        def visit(number: int, call: BlockCall, context: StepContext) -> Streams:
            if number == 0:
                self._begin(call, context)
            if context.step in self.reused and context.branch in self._last:
                return call.streams if number < last else {**call.streams, **self._last[context.branch]}
            out = call.run()
            if number == last:
                self._last[context.branch] = {name: out[name] for name in wiring.read}
                if self.trajectory.holds(context):
                    self.trajectory.features.append(sampled(out[stream]))
            return out

        answer_blocks(target, install, visit)

    def _begin(self, call: BlockCall, context: StepContext) -> None:
        """The first block is called."""
        if self.trajectory.holds(context):
            self.trajectory.contexts.append(context)
            self.trajectory.inputs.append(sampled(call.streams[call.wiring.output_stream]))
            if "modulation" not in call.wiring.lacks:
                self.trajectory.modulated.append(sampled(call.wiring.modulation(call.block, call.given)))


def recorder(trajectory: Trajectory, reused: tuple[int, ...] = ()) -> Observe:
    """A `FeatureRecorder` in the cache's place."""
    return Observe(FeatureRecorder(trajectory, reused).put_on)


def sampled(tokens: torch.Tensor) -> torch.Tensor:
    """Some tokens of (B, N, D), the same ones every time."""
    count = tokens.shape[1]
    # A large odd stride through the grid, so that no row or column of it is seen more often than others.
    places = (torch.arange(min(SAMPLED_TOKENS, count), device=tokens.device) * 7919) % count
    return tokens[:, places].float()
