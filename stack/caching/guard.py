"""The denoiser's output, looked at after every step: what is no picture is not handed on where that can be helped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..core.installer import Installer
from ..runtime import readback
from ..runtime.call import DenoiserCall, Entrance
from ..runtime.readback import Readback
from ..runtime.report import FULL, Journal
from .controller import CacheController
from .latent import tokens_of

SATURATED = 10.0  # times the last full step's norm
CONSTANT = 1e-2  # of the last full step's spread over the tokens; rounding in float32 is 3e-4 of the norm
NO_NUMBER, LARGE, FLAT = "NaN or infinity", "saturated", "constant over the tokens"


class OutputGuard:
    """Compares every output with the last full step's of its branch: is it finite, of like norm, and not constant?

    In host memory looking costs microseconds: a cached step that fails is made again in full, in the same call. On an
    accelerator a look would wait for the device. There the figures come back as they are ready, and what is wrong is
    told at a later full step or by the report; forecasts that blow up are refused beforehand, see
    `stack.caching.extrapolation`.
    """

    def __init__(self, controller: CacheController, journal: Journal):
        self.controller, self.journal = controller, journal
        self.recomputed = 0
        self._full: dict[str, tuple[int, Readback]] = {}  # of the last full step: its request, and its figures
        self._late: list[tuple[int, int, Readback, Readback]] = []

    def install(self, entrance: Entrance, install: Installer) -> None:
        """Stand before the denoiser and before the cache."""
        install.wrap_call(entrance, "run", lambda inner: lambda call: self._visit(call, inner))

    def reset(self) -> None:
        """Forget what outputs were like."""
        self._full.clear()
        self._late.clear()

    def _visit(self, call: DenoiserCall, run: Callable[[DenoiserCall], Any]) -> Any:
        result = run(call)
        figures = Readback(figures_of(result[0]))
        now = self.controller.now
        if self.journal.entries[-1].kind == FULL:
            self.settle()
            self._full[now.branch] = now.request, figures
            if now.is_last:  # no step comes that would notice
                self._late.append((now.request, now.step, figures, figures))
            return result
        request, full = self._full.get(now.branch, (-1, figures))
        if request != now.request or full.shape != figures.shape:
            return result
        if not readback.reads_are_free(result[0].device):
            self._late.append((now.request, now.step, figures, full))
            return result
        if not (wrong := fault(figures.read(), full.read())):
            return result
        self.controller.empty()
        self.recomputed += 1
        self.journal.warn(f"output of cached step {now.step} was {wrong}: the step was made again in full")
        result = run(call)
        self._full[now.branch] = now.request, Readback(figures_of(result[0]))
        return result

    def settle(self, wait: bool = False) -> None:
        """Say what is wrong with outputs whose figures have arrived, or with all of them."""
        late, self._late = self._late, []
        for request, step, figures, full in late:
            if request != self.controller.now.request:
                continue
            if not (wait or (figures.ready and full.ready)):
                self._late.append((request, step, figures, full))
            elif wrong := fault(figures.read(), full.read()):
                self.journal.warn(f"output of step {step} was {wrong}")


def figures_of(output: torch.Tensor) -> torch.Tensor:
    """(2, B): root mean square of every sample's tokens (their norms), and of their distances from their mean."""
    tokens, wide = tokens_of(output), torch.promote_types(output.dtype, torch.float32)
    # A variance in one go takes torch ten times as long as these two sums.
    power = torch.linalg.vector_norm(tokens, dim=(1, 2), dtype=wide).square() / tokens.shape[1]
    spread = power - tokens.mean(1, dtype=wide).square().sum(-1)
    return torch.stack([power, spread.clamp_min(0)]).sqrt()


def fault(figures: list[list[float]], full: list[list[float]]) -> str:
    """What is wrong with an output, in words; "" if nothing is.

    Args:
        figures, full: (2, B) of the output and of the last full step's, from `figures_of`.
    """
    for norm, spread, full_norm, full_spread in zip(*figures, *full, strict=True):
        if norm - norm != 0:
            return NO_NUMBER
        if norm > SATURATED * full_norm:
            return LARGE
        if spread < CONSTANT * full_spread:
            return FLAT
    return ""
