"""What passes act on: a denoiser, its pipeline, and what is known of the call that goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ..core.facts import Facts
from ..models.grid import RequestGrid
from ..models.layout import Wiring
from ..models.sampler import LinearSampler, planned_sampler
from .call import InterceptorChain
from .conditions import ConditionsReader
from .report import Journal
from .step import ComputeModes, StepContext
from .step_clock import Clock

PAST_THE_STACK = (
    "no call of the denoiser came through the stack: was its forward replaced after apply()? undo() and apply it again"
)


@dataclass
class Target:
    """What passes act on.

    Attributes:
        denoiser, wiring, facts: the transformer, how it is wired, and what was true of it before any pass.
        now: what is true of it below the pass that is being applied.
        clock: request, branch and step of the current call.
        journal: where passes note what a call turned out to be.
        passes: how often passes have been put on or taken off.
        pipe: the pipeline, if there is one.
        owner: the stack, which lasts as long as the model carries it.
        lock: held by whoever runs the model.
        abort: lets go of what passes keep between calls.
        prepare: called at the start of a pipeline call with its number of denoiser steps, 0 where that is not known;
            returns what the report has to say of it.
        conditions: what the current call's features depend on, for stamps.
        chain: what a call of the whole denoiser passes before the model.
        grid: what the output stream's tokens lie on in the current request.
        part: the pipeline's name of the denoiser, where it is not its first one; in front of the branches of its calls.
        taken_over: called where this denoiser's calls follow on those of another.
        compute_modes: what makes the entries of `StepContext.compute_mode`.
        compile_mode: how blocks are compiled, a mode of torch.compile; "" where they are not.
        schedulers: what a pass has put in the place of the pipeline's own scheduler, by that one: it may be in the
            middle of a run when passes are put on anew.
        in_call: passes are put on for a pipeline call that has begun.
        attention_backends: who may compute attention in place of torch, the first one asked first; see
            `stack.attention.layers`.
    """

    denoiser: nn.Module
    wiring: Wiring
    facts: Facts
    clock: Clock
    journal: Journal
    passes: Callable[[], int]
    pipe: Any | None = None
    owner: Any | None = None
    lock: AbstractContextManager[Any] = field(default_factory=RLock)
    abort: Callable[[], None] = lambda: None
    prepare: Callable[[int], list[str]] = lambda steps: []
    chain: InterceptorChain = field(default_factory=InterceptorChain)
    part: str = ""
    taken_over: Callable[[], None] = lambda: None
    compute_modes: ComputeModes = ()
    schedulers: WeakKeyDictionary[Any, Any] = field(default_factory=WeakKeyDictionary)
    in_call: bool = False
    attention_backends: tuple[Any, ...] = ()
    compile_mode: str = ""
    conditions: ConditionsReader = field(init=False)
    grid: RequestGrid = field(init=False)

    now: Facts = field(init=False)

    def __post_init__(self) -> None:
        self.now = self.facts
        wiring = self.wiring
        self.conditions = ConditionsReader(
            self.denoiser, wiring.residuals, self.passes, moving=(wiring.latent, wiring.time, *wiring.times)
        )
        self.grid = RequestGrid(
            partial(wiring.grid, self.denoiser),
            lambda: self.conditions.asked_for,
            lambda: self.conditions.given,
        )

    @property
    def contexts(self) -> list[StepContext]:
        """Of this denoiser's calls in the last pipeline call."""
        return [entry.context for entry in self.journal.entries if entry.context.part == self.part]

    def sampler(self) -> Callable[[], LinearSampler]:
        """What gives the sampler of the current request, see `stack.models.sampler.planned_sampler`."""
        return planned_sampler(self.pipe, lambda: self.clock.sigma_schedule)

    @contextmanager
    def one_page(self) -> Iterator[None]:
        """A pipeline call through the stack: its denoiser calls are one page, and if there are none that is said."""
        with self.clock.one_page():
            yield
            if not self.clock.called:
                self.journal.entries, self.journal.warnings = [], []
                self.journal.warn(PAST_THE_STACK)

    def forget(self) -> None:
        """A call or a request was aborted: drop its state; the next call begins a new request."""
        self.clock.restart()
        self.abort()
