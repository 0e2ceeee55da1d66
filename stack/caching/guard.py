"""What a cache must not do: keep autograd graphs, use non-finite state, extrapolate too far, return broken outputs.

A forecast is a sum of terms with known weights, and the norm of every term is known since the full step that made it.
By the triangle inequality it differs from the last feature by at most sum_(i>0) |w_i| |D_i|. So a forecast that blows
up is refused before a block is skipped for it, and no cached step waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from ..core import readback
from ..core.no_gradient import NoGradient
from ..core.readback import Readback
from ..runtime.call import DenoiserCall, Proceed
from ..runtime.report import Journal
from ..runtime.step import FULL, StepContext
from ..runtime.step_clock import Clock
from ..runtime.values import flat
from .latent import tokens_of
from .measurements import Measurements
from .predictor import Predictor, weights

# Times the last feature's norm. On shapes-flux SVD-Cache may go 0.2, and TaylorSeer, the farthest of all presets, 3.4
# times its norm (20 steps, interval 7).
FURTHEST = 10.0
SATURATED = 10.0  # times the last full step's norm
CONSTANT = 1e-2  # of the last full step's spread over the tokens; rounding in float32 is 3e-4 of the norm
NO_NUMBER, LARGE, FLAT = "NaN or infinity", "saturated", "constant over the tokens"
NO_GRADIENT = "outputs under a cache have no gradient: undo() the stack before training"

Norms = list[tuple[Predictor | None, torch.Tensor]]  # (k,) each


class NoGradients:
    """Calls the denoiser without gradients, whatever the mode; what wants them is refused in its backward pass.

    With them every kept feature would hold the graph of its step, and a cached step would return a forecast's
    gradients. Wanted they are where an argument requires them, or the parameters of a model in training mode do.
    """

    def __init__(self, denoiser: nn.Module):
        self._denoiser = denoiser

    def intercept(self, call: DenoiserCall, proceed: Proceed) -> Any:
        if not torch.is_grad_enabled():
            return proceed(call)
        wanted = self._wanted(call)
        with torch.no_grad():
            result = proceed(call)
            if wanted is None:
                return result
            made = call.made(result)
        return call.answer(NoGradient.apply(made, wanted, NO_GRADIENT))

    def _wanted(self, call: DenoiserCall) -> torch.Tensor | None:
        """A tensor that requires gradients, or None."""
        asked = flat(call.given.values())
        if self._denoiser.training:
            asked += self._denoiser.parameters()
        return next((one for one in asked if isinstance(one, torch.Tensor) and one.requires_grad), None)


@dataclass
class _LastFull:
    """The output of a branch's last full step.

    Attributes:
        tokens: how many it has.
        norms: see `norms_of`.
        readback: the same on their way to the host, where reading is not free; else None.
    """

    request: int
    tokens: int
    norms: list[list[float]]
    readback: Readback | None


class OutputGuard:
    """Compares every output with the last full step's of its branch: is it finite, of like norm, and not constant?

    In host memory the check costs microseconds: a cached step that fails is run again in full, in the same call. On an
    accelerator reading the norms would wait for the device. There they are copied back without waiting, and a fault is
    reported at a later full step or in the report; forecasts that blow up are refused first, see `ExtrapolationGuard`.

    Args:
        drop: lets go of what the cache keeps of this request, so that the next decision is for a full step.
    """

    def __init__(self, clock: Clock, journal: Journal, drop: Callable[[], None]):
        self._clock, self._journal, self._drop = clock, journal, drop
        self.recomputed = 0
        self._full: dict[str, _LastFull] = {}  # by branch
        self._late: list[tuple[int, int, int, Readback, Readback]] = []  # request, step, tokens, norms of both

    def reset(self) -> None:
        """Forget what outputs were like."""
        self._full.clear()
        self._late.clear()

    def intercept(self, call: DenoiserCall, proceed: Proceed) -> Any:
        result = proceed(call)
        now = self._clock.context
        assert now is not None
        output = call.made(result)
        norms = norms_of(output)
        if now.outcome.kind == FULL:
            self.settle()
            last = self._note(now, output, norms)
            if now.is_last:  # no step comes that would notice
                seen = last.readback or Readback(norms)
                self._late.append((now.request, now.at, last.tokens, seen, seen))
            return result
        full = self._full.get(now.branch)
        if full is None or full.request != now.request:
            return result
        if full.readback is not None:
            self._late.append((now.request, now.at, full.tokens, Readback(norms), full.readback))
            return result
        if not (wrong := fault(norms.tolist(), full.norms, full.tokens)):
            return result
        self._drop()
        self.recomputed += 1
        self._journal.warn(f"output of cached step {now.at} was {wrong}: the step was made again in full")
        result = proceed(call)
        output = call.made(result)
        self._note(now, output, norms_of(output))
        return result

    def _note(self, now: StepContext, output: torch.Tensor, norms: torch.Tensor) -> _LastFull:
        """A full step had this output."""
        tokens = output.shape[1] if output.ndim == 3 else output.shape[2:].numel()
        free = readback.reads_are_free(norms.device)
        last = _LastFull(now.request, tokens, norms.tolist() if free else [], None if free else Readback(norms))
        self._full[now.branch] = last
        return last

    def settle(self, wait: bool = False) -> None:
        """Say what is wrong with outputs whose norms have arrived, or with all of them."""
        late, self._late = self._late, []
        for request, step, tokens, norms, full in late:
            if self._clock.context is None or request != self._clock.context.request:
                continue
            if not (wait or (norms.ready and full.ready)):
                self._late.append((request, step, tokens, norms, full))
            elif wrong := fault(norms.read(), full.read(), tokens):
                self._journal.warn(f"output of step {step} was {wrong}")


def norms_of(output: torch.Tensor) -> torch.Tensor:
    """(2, B): the norm of every sample, and of the mean of its tokens."""
    tokens = output if output.ndim == 3 else tokens_of(output)
    wide = torch.promote_types(output.dtype, torch.float32)
    # A variance in one go takes torch ten times as long as these two sums.
    norm = torch.linalg.vector_norm(tokens, dim=(1, 2), dtype=wide)
    return torch.stack([norm, torch.linalg.vector_norm(tokens.mean(1, dtype=wide), dim=1)])


def fault(norms: list[list[float]], full: list[list[float]], tokens: int) -> str:
    """What is wrong with an output of so many tokens, in words; "" if nothing is.

    Args:
        norms, full: (2, B) of the output and of the last full step's, from `norms_of`.
    """
    for norm, mean, full_norm, full_mean in zip(*norms, *full, strict=True):
        if norm - norm != 0:
            return NO_NUMBER
        if norm > SATURATED * full_norm:
            return LARGE
        if spread(norm, mean, tokens) < CONSTANT * spread(full_norm, full_mean, tokens):
            return FLAT
    return ""


def spread(norm: float, mean: float, tokens: int) -> float:
    """Root mean square of the distances of a sample's tokens from their mean."""
    return max(0.0, norm * norm / tokens - mean * mean) ** 0.5


@dataclass
class ExtrapolationGuard:
    """Norms of what the forecasts of one slot are made of.

    Attributes:
        finite: whether all of them are finite.
        unread: norms that are noted, their copy to the host not started.
    """

    finite: bool = True
    unread: Norms = field(default_factory=list)
    _awaited: Norms = field(default_factory=list)
    _squares: dict[tuple[float, ...], tuple[Predictor, list[float]]] = field(default_factory=dict)

    def note(self, norms: torch.Tensor, predictor: Predictor | None = None) -> None:
        """A step has stored terms with these norms (k,); of a predictor, or kept by a site itself."""
        self.unread.append((predictor, norms))

    def clear(self) -> None:
        """Nothing is kept any more."""
        self.finite = True
        self.unread, self._awaited = [], []
        self._squares.clear()

    def send(self, to: Measurements) -> None:
        """Send the norms noted since the last call; until they have arrived nothing is known of them."""
        if self.unread:
            self._awaited, self.unread = self.unread, []
            self._squares.clear()
            to.note(partial(self._take, self._awaited), torch.cat([norms for _, norms in self._awaited]))

    def _take(self, sent: Norms, *numbers: float) -> None:
        """The numbers of norms that were sent; passed over if others have been sent since."""
        if sent is not self._awaited:
            return
        self.finite = all(number - number == 0 for number in numbers)
        start = 0
        for predictor, norms in sent:
            mine, start = numbers[start : start + len(norms)], start + len(norms)
            if predictor is not None:
                _, squares = self._squares.setdefault(predictor.nodes, (predictor, [0.0] * len(norms)))
                squares[:] = [a + b * b for a, b in zip(squares, mine, strict=True)]
        self._awaited = []

    def at(self, x: float) -> float:
        """How far the forecasts at x may go from the last features, all features of a slot together, over their norm.

        Together, because a module that adds almost nothing may add ten times as much without harm.
        """
        distances = [0.0]
        for nodes, (predictor, squares) in self._squares.items():
            distance = 0.0
            for weight, square in zip(weights(predictor.forecast, x, nodes)[1:], squares[1:], strict=True):
                distance += abs(weight) * square**0.5
            distances.append(distance / max(squares[0] ** 0.5, 1e-30))
        return max(distances)
