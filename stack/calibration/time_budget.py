"""What a calibration may spend, looked at between the denoiser's steps: nothing runs on for long after its time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from ..core.errors import StackError
from ..core.progress import counted
from ..core.validate import checked
from ..measure.timing import drain
from ..runtime.call import DenoiserCall
from ..runtime.pipeline_calls import PipelineCalls
from ..runtime.stack_like import StackLike
from ..runtime.step import StepContext
from .observe import Observe, Run, answer_calls

CHECK = 1.1  # times the seconds given, until which a check on held-out prompts may run on
LOOKED_AT = 4  # steps of one picture that are timed to estimate the cost of all
CACHED_COST = 0.1  # of a cached step, as a share of a full one: what is reckoned with before any was timed
FEWEST, FEWEST_HELD = 2, 1  # prompts to search on, and to check on


class OutOfTime(Exception):
    """A run was broken off because its time is over."""


STOPPED = (OutOfTime, KeyboardInterrupt)  # what ends a search with the best so far


class SearchBudget:
    """What a calibration may spend.

    Args:
        trials: runs of all prompts.
        seconds: in all, the check on held-out prompts included.
        clock: seconds from any start on.

    Attributes:
        reserved: seconds of these for the check.
        interrupted: by Ctrl-C; no time is left then.
    """

    def __init__(self, trials: int, seconds: float, clock: Callable[[], float] = time.monotonic):
        checked(int, trials, "trials")
        if seconds != math.inf:  # which is no limit
            checked(float, seconds, "budget")
        if trials < 1 or not seconds > 0:
            raise StackError(f"expected at least 1 trial and more than 0 seconds, got {trials} and budget={seconds:g}")
        self.trials, self.seconds, self._clock, self._started = trials, seconds, clock, clock()
        self.reserved = 0.0
        self.interrupted = False
        self._limit = seconds

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    def left(self, share: float = 1.0) -> bool:
        """Whether this share of the time for trials has not passed."""
        return not self.interrupted and self.spent < share * (self.seconds - self.reserved)

    def room(self, seconds: float) -> bool:
        """Whether so many seconds of the time for trials are left."""
        return self.left() and self.spent + seconds < self.seconds - self.reserved

    def keep(self, seconds: float) -> None:
        """Trials end so long before the end."""
        self.reserved = seconds
        self._limit = self.seconds - seconds

    def begin_check(self) -> None:
        """Trials are over; what follows may take the rest, and a little more."""
        self._limit = CHECK * self.seconds

    def stopped(self, by: BaseException) -> None:
        """A run was broken off; after Ctrl-C no other begins."""
        self.interrupted |= isinstance(by, KeyboardInterrupt)

    def look(self) -> None:
        """Break off what runs, if its time is over.

        Raises:
            OutOfTime: it is.
        """
        if self.spent > self._limit:
            raise OutOfTime


@contextmanager
def watched(denoisers: Iterable[nn.Module], budget: SearchBudget) -> Iterator[None]:
    """Look at the budget before every call of one of the denoisers inside the `with`."""
    handles = [denoiser.register_forward_pre_hook(lambda *_: budget.look()) for denoiser in denoisers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Seen(Exception):
    """Enough steps of a picture were timed."""


def picture_seconds(
    stack: StackLike, calls: PipelineCalls, prompt: Any, seed: int, steps: int, budget: SearchBudget
) -> float:
    """Seconds of one uncached picture, estimated from its first steps; the caller puts the stack's cache back.

    Raises:
        OutOfTime: from a budget's `watched`; one step alone took too long.
    """
    device, begun = torch.device(stack.facts.machine.device), dict[int, float]()

    def visit(call: DenoiserCall, run: Run, context: StepContext) -> Any:
        drain(device)
        begun.setdefault(context.step, budget.spent)
        if context.step >= LOOKED_AT:
            raise _Seen
        return run(call)

    stack.replace(Observe(lambda target, install: answer_calls(target, install, visit)))
    with suppress(_Seen):
        calls.make(stack, [prompt], seed, steps)
        drain(device)
        begun[steps] = budget.spent
    marks = sorted(begun.values())
    later = marks[1:] if len(marks) > 2 else marks  # the first step may choose kernels
    return steps * (later[-1] - later[0]) / max(1, len(later) - 1)


def least_seconds(picture: float, prompts: int, held_out: int, share: float) -> float:
    """Seconds of the shortest calibration: uncached runs of all prompts, one of their growth, the cache as it is and
    one trial on those searched on, both on those held out.

    Args:
        picture: seconds of one uncached picture.
        share: of its steps that are full.
    """
    return picture * (prompts + held_out + 1) + 2 * cached_seconds(picture, prompts + held_out, share)


def cached_seconds(picture: float, prompts: int, share: float) -> float:
    """Seconds of one run with the cache, see `least_seconds`."""
    return picture * prompts * min(1.0, share + CACHED_COST * (1 - share))


def fitting(
    prompts: Sequence[Any], held_out: Sequence[Any], picture: float, share: float, seconds: float, spent: float = 0.0
) -> tuple[list[Any], list[Any]]:
    """As many of the prompts as a calibration of these seconds, some of them spent, has time for. Pure.

    Raises:
        StackError: not even the fewest.
    """
    searched, held = list(prompts), list(held_out)
    while least_seconds(picture, len(searched), len(held), share) > seconds - spent:
        if len(searched) > max(FEWEST, len(held)) or (len(searched) > FEWEST and len(held) == FEWEST_HELD):
            searched.pop()
        elif len(held) > FEWEST_HELD:
            held.pop()
        else:
            raise too_short(picture, seconds, share)
    return searched, held


def too_short(picture: float, seconds: float, share: float) -> StackError:
    """The error for a budget that is too small to begin with."""
    least = least_seconds(picture, FEWEST, FEWEST_HELD, share)
    what = f"one picture takes about {picture:.2g} s, and the shortest calibration {math.ceil(max(least, seconds))} s"
    few = f"{counted(FEWEST, 'prompt')}, {FEWEST_HELD} held out"
    return StackError(f"{what} ({few}): got budget={seconds:g}, give it more seconds or plan fewer steps")
