"""Uncached trajectories, recorded once: what schedules and forecasts are judged on without running the model again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from ..caching.forecast import Forecast, coordinate, gaps
from ..caching.predictor import weights
from ..caching.sites.calls import BlockCall
from ..core.installer import Installer
from ..models.ports import Streams
from ..models.wiring import Wiring
from ..runtime.step import StepContext
from ..runtime.target import Target
from .observe import Observe, answer_blocks

SAMPLED_TOKENS = 128  # of the output stream: the head works token by token, and errors are averaged over them anyway


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
        heads: per step, features (B, n, D) to the denoiser's output (B, n, C).
    """

    features: list[torch.Tensor] = field(default_factory=list)
    contexts: list[StepContext] = field(default_factory=list)
    inputs: list[torch.Tensor] = field(default_factory=list)
    modulated: list[torch.Tensor] = field(default_factory=list)
    heads: list[Callable[[torch.Tensor], torch.Tensor]] = field(default_factory=list)

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

    def xs(self, name: str) -> list[float]:
        """Coordinates of the steps."""
        return [coordinate(name, t.step, t.time, t.sigma) for t in self.contexts]


class SegmentErrors:
    """Errors that a forecast leaves in the final sample, segment by segment of a recorded trajectory.

    Features on full steps are taken from the uncached run: the feedback of errors on later features is left out. Only
    forecasts without a split, of order 0 or 1, depend on no more than two full steps and can be asked for.

    Args:
        scale: see `error_weights`; one per step.
    """

    def __init__(self, trajectory: Trajectory, scale: Sequence[float], forecast: Forecast):
        assert forecast.order <= 1 and not forecast.splits
        self.trajectory, self.scale, self.forecast = trajectory, scale, forecast
        self._xs = trajectory.xs(forecast.coordinate)
        self._parts = [context.part for context in trajectory.contexts]
        with torch.no_grad():
            self._outputs = [head(f) for head, f in zip(trajectory.heads, trajectory.features, strict=True)]
        self._sums: dict[tuple[int, int, int], torch.Tensor] = {}

    def vector(self, before: int, at: int, to: int) -> torch.Tensor:
        """Sum over the cached steps at < s < to of their weighted output errors (B, n, C); `before` is -1 for none."""
        key = (before, at, to)
        if key not in self._sums:
            if to == at + 1:
                self._sums[key] = torch.zeros_like(self._outputs[at])
            else:
                self._sums[key] = self.vector(before, at, to - 1) + self._error(before, at, to - 1)
        return self._sums[key]

    def _error(self, before: int, at: int, step: int) -> torch.Tensor:
        features, nodes = self.trajectory.features, [self._xs[at]]
        predicted = features[at]
        same = before >= 0 and self._parts[before] == self._parts[at]
        if same and (gap := gaps(self.forecast, self._xs[at], [self._xs[before]])):
            nodes.append(self._xs[before])
            factor = self.forecast.gains[0] * weights(self.forecast, self._xs[step], nodes)[1] / gap[0]
            predicted = predicted + factor * (features[at] - features[before])
        return self.scale[step] * (self.trajectory.heads[step](predicted) - self._outputs[step])

    @torch.no_grad()
    def cost(self, before: int, at: int, to: int) -> float:
        """Mean square of `vector`: the cost of a segment if errors of different segments do not cancel.

        Infinite where another denoiser takes over inside it: there is no such segment.
        """
        if self._parts[at] != self._parts[to - 1]:
            return math.inf
        return float(self.vector(before, at, to).square().mean())

    def total(self, full_steps: Sequence[int]) -> float:
        """The cost of a whole schedule."""
        return sum(self.cost(h, i, j) for h, i, j in segments(full_steps, len(self.scale)))


def segments(full_steps: Sequence[int], steps: int) -> list[tuple[int, int, int]]:
    """(previous full step or -1, full step, next full step or the number of steps), segment by segment."""
    return list(zip((-1, *full_steps), full_steps, (*full_steps[1:], steps), strict=False))


@dataclass
class FeatureRecorder:
    """Steps are full, and the last hidden state of each is written down. For one run.

    Attributes:
        reused: steps that reuse the last feature instead: a small disturbance, whose course is then seen.
    """

    trajectory: Trajectory
    reused: tuple[int, ...] = ()
    _last: dict[str, Streams] = field(default_factory=dict)
    _given: Mapping[str, Any] = field(default_factory=dict)

    def put_on(self, target: Target, install: Installer) -> None:
        """Answer the blocks' calls."""
        denoiser, wiring = target.denoiser, target.wiring
        stream, last = wiring.output_stream, len(wiring.blocks(denoiser)) - 1

        def visit(number: int, call: BlockCall, context: StepContext) -> Streams:
            if number == 0:
                self._begin(call, context)
            if context.step in self.reused and context.branch in self._last:
                return call.streams if number < last else {**call.streams, **self._last[context.branch]}
            out = call.run()
            if number == last:
                self._last[context.branch] = {name: out[name] for name in wiring.read}
                self._end(out[stream], context, denoiser, wiring)
            return out

        answer_blocks(target, install, visit)

    def _begin(self, call: BlockCall, context: StepContext) -> None:
        """The first block is called; the head needs its arguments as well."""
        self._given = call.given
        if self.trajectory.holds(context):
            self.trajectory.contexts.append(context)
            self.trajectory.inputs.append(sampled(call.streams[call.wiring.output_stream]))
            if "modulation" not in call.wiring.lacks:
                self.trajectory.modulated.append(sampled(call.wiring.modulation(call.block, call.given)))

    def _end(self, feature: torch.Tensor, context: StepContext, denoiser: nn.Module, wiring: Wiring) -> None:
        """The last block has returned the output stream's feature (B, N, D)."""
        if self.trajectory.holds(context):
            given, dtype = self._given, feature.dtype
            self.trajectory.features.append(sampled(feature))
            self.trajectory.heads.append(lambda f: wiring.head(denoiser, f.to(dtype), given).float())


def recorder(trajectory: Trajectory, reused: tuple[int, ...] = ()) -> Observe:
    """A `FeatureRecorder` in the cache's place."""
    return Observe(FeatureRecorder(trajectory, reused).put_on)


def sampled(tokens: torch.Tensor) -> torch.Tensor:
    """Some tokens of (B, N, D), the same ones every time."""
    count = tokens.shape[1]
    # A large odd stride through the grid, so that no row or column of it is seen more often than others.
    places = (torch.arange(min(SAMPLED_TOKENS, count), device=tokens.device) * 7919) % count
    return tokens[:, places].float()


def growth(plain: Trajectory, disturbed: Trajectory, after: int) -> list[float]:
    """The size n_1 ... n_S of the difference between two runs after each step.

    Before step `after`, while the disturbance builds up, its size at `after` is used. For the step behind the last
    input the last change is extrapolated.
    """
    pairs = zip(plain.inputs, disturbed.inputs, strict=True)
    # The disturbed run may hold the first prompt alone; with guidance in one batch each has a row per branch.
    sizes = [float((a[:: len(a) // len(b)] - b).norm()) for a, b in pairs]
    sizes = [max(size, 1e-12) for size in [*sizes, sizes[-1] ** 2 / max(sizes[-2], 1e-12)]]
    return [sizes[max(step, after)] for step in range(1, len(sizes))]


def error_weights(outputs: Sequence[float], growth: Sequence[float]) -> list[float]:
    """How much of an error in the output of each step is left in the final sample: w_s = b_s * n_S / n_(s+1).

    A difference between two runs grows and shrinks on its way, by the sampler and by what the denoiser makes of it.
    Its size along one disturbed run, n_1 ... n_S, is taken for all of them.

    Args:
        outputs: b of every step, the share of its output in the latent behind it; of a sampler without memory.
        growth: n_1 ... n_S, the size of a difference after each step; only ratios matter.
    """
    return [b * growth[-1] / n for b, n in zip(outputs, growth, strict=True)]
