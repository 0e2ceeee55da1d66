"""A linear in two precisions: one for the middle of the schedule, one for the steps near its ends."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...runtime.call import DenoiserCall, Proceed
from ...runtime.step import StepContext
from ...runtime.step_clock import Clock


class Phase:
    """Which part of the schedule a request is in. One object for all linears of a stack, set once per denoiser call.

    A compiler guards on `at_ends` and compiles either way once, however many steps there are.
    """

    def __init__(self) -> None:
        self.at_ends = False


def ends_of(steps: int, share: float) -> int:
    """How many steps are near either end of a schedule of `steps`: at least one."""
    return max(1, round(share * steps))


def near_ends(context: StepContext, share: float) -> bool:
    """Whether a step is among the first or the last `share` of its schedule."""
    steps = ends_of(context.whole, share)
    return context.at < steps or context.at >= context.whole - steps


class SwitchPrecision:
    """Sets, before the model is called, which precision the linears use on this step.

    Args:
        index: of their entry in `StepContext.compute_mode`.
    """

    def __init__(self, clock: Clock, phase: Phase, index: int):
        self._clock, self._phase, self._index = clock, phase, index

    def intercept(self, call: DenoiserCall, proceed: Proceed) -> Any:
        assert self._clock.context is not None
        self._phase.at_ends = bool(self._clock.context.compute_mode[self._index])
        return proceed(call)


class TwoPrecisions(nn.Module):
    """Forwards to one of two linears of the same shape.

    Args:
        ends, middle: for steps near the ends of the schedule, and for the others.
    """

    def __init__(self, ends: nn.Module, middle: nn.Module, phase: Phase):
        super().__init__()
        self.ends, self.middle, self._phase = ends, middle, phase

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input (..., K) to (..., N)."""
        return self.ends(input) if self._phase.at_ends else self.middle(input)
