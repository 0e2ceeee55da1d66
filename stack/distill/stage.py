"""What the two stages of an adapter share: its card, the facts it changes, its scheduler and its calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from ..compat import preexisting
from ..compat.rules.adapters import ANOTHER_MODEL, MISSING_SCHEDULER, TWO_SCHEDULES, UNSCALED_FP8
from ..core.errors import StackError
from ..core.facts import Facts
from ..core.installer import Installer
from ..core.passes import Applied, Finding, TransformedCall, field_options
from ..core.validate import RunSteps, check_fields
from ..models.preexisting import CAST
from ..models.sampler import why_not_linear
from ..models.schedule import SigmaSchedule, of_flow, uniform
from ..runtime.call_arguments import CallParameters
from ..runtime.target import Target
from .call import corrected
from .card import Card
from .find import content, fetched, find_card, on_this_machine
from .fits import misfit, missing_scheduler
from .listed import scheduler_of
from .load import Updates, components_of, load_updates
from .parse import FLOW_EULER
from .schedules import AdapterSchedule


@dataclass(frozen=True)
class AdapterStage(ABC):
    """An adapter, from its card; what is given here wins.

    Attributes:
        adapter: a shipped card's name, a `.toml` card, a `.safetensors` file, or a folder that holds one of them.
        scale: factor on the update; None takes the card's.
        steps: denoiser steps; None takes the card's.
        shift: a constant shift of the schedule; None takes the card's schedule.
        sigmas: literal noise levels, largest first and without the final 0; empty takes the card's schedule.
        second: use the card's second stage, a pass over an upscaled latent.

    Raises:
        StackError: steps below 1, a scale that is no number, or both a shift and noise levels.
    """

    adapter: str
    scale: float | None = None
    steps: RunSteps | None = None
    shift: float | None = None
    sigmas: tuple[float, ...] = ()
    second: bool = False
    _digests: dict[tuple[Any, ...], str] = field(default_factory=dict, init=False, repr=False, compare=False)
    stage: ClassVar[str]

    def __post_init__(self) -> None:
        check_fields(self, self.stage)
        if self.shift is not None and self.sigmas:
            raise StackError("expected a shift or sigmas, got both: sigmas are used as they are")

    @cached_property
    def card(self) -> Card:
        """The card, with what was given here.

        Raises:
            StackError: see `stack.distill.find.find_card`; or steps that the schedule does not have.
        """
        card = find_card(self.adapter)
        if self.second:
            card = card.second_stage()
        if self.scale is not None and card.weights:
            card = replace(card, weights=replace(card.weights, scale=self.scale))
        return self._rescheduled(card)

    def _rescheduled(self, card: Card) -> Card:
        own: dict[str, Any] = {}
        if self.sigmas or self.shift is not None:
            kind = "sigmas" if self.sigmas else "shift"
            own["schedule"] = AdapterSchedule(kind, tuple(self.sigmas), self.shift or 1.0)
            own["scheduler"] = card.scheduler if card.scheduler.name else FLOW_EULER
        steps = self.steps or len(self.sigmas)
        if not own and steps and card.least <= steps <= card.largest and not card.schedule.count:
            return replace(card, steps=steps)
        if own or steps:
            own |= {"steps": steps or card.steps, "fewest": 0, "most": 0, "verified": False}
        if own.get("schedule") and not own["steps"]:
            raise StackError(f"{card.name}: a shift needs steps, the number the adapter was made for")
        return replace(card, **own)

    @property
    def updates(self) -> bool:
        """Whether there are weights to be put on the model."""
        return self.card.weights is not None

    @property
    def identity(self) -> str:
        """Name and content, for stamps and calibrations: other weights under the same name are another adapter."""
        scale = f"*{self.card.weights.scale:g}" if self.card.weights else ""
        return f"{self.card.name}@{self._digest or 'unfetched'}{scale}" if self.card.weights else self.card.name

    @property
    def _digest(self) -> str:
        """Of the files as they are now: read again when one has been written to, "" where they have to be fetched."""
        files = on_this_machine(self.card)
        if not files:
            return ""
        state = tuple((name, path, path.stat().st_mtime_ns, path.stat().st_size) for name, path in files.items())
        if state not in self._digests:
            self._digests[state] = content(files)
        return self._digests[state]

    def options(self) -> dict[str, Any]:
        """The arguments that make an equal pass, those at their defaults left out."""
        return field_options(self)

    def describe(self, facts: Facts) -> list[str]:
        card = self.card
        lines = [self.how()]
        if card.steps:
            lines.append(f"made for {card.steps} steps: {card.schedule.words()}; guidance: {card.guidance.words()}")
        if card.scheduler.name:
            lines.append(f"scheduler: {card.scheduler.name}, built from the card")
        if card.licence:
            lines.append(f"licence of the weights: {card.licence}")
        return lines

    @abstractmethod
    def how(self) -> str:
        """The first line of `describe`."""

    def check(self, facts: Facts) -> list[Finding]:
        """Another family, a second schedule, a scheduler diffusers lacks, doubtful facts, weights to be fetched."""
        card = self.card
        return [*self._refusals(card, facts), *self._notes(card, facts)]

    def _notes(self, card: Card, facts: Facts) -> list[Finding]:
        notes = [Finding(self.stage, doubts(card), note=True)] if doubts(card) else []
        models = card.base if card.weights else (card.model,)
        if facts.origin and models and not _is_base(facts.origin, models):
            what = f"{card.name} is made for {' or '.join(models)}, this is {facts.origin}"
            notes.append(Finding.of(ANOTHER_MODEL, self.stage, what, note=True))
        if self.updates and card.weights and on_this_machine(card) is None:
            what = f"weights are fetched from {card.weights.repo or 'nowhere: they are missing'}"
            notes.append(Finding(self.stage, what, note=True))
        if self.updates and card.steps and CAST in facts.carries:
            what = f"{card.name} meets weights that were cast to fp8 without scales"
            notes.append(Finding.of(UNSCALED_FP8, self.stage, what, note=True))
        return notes

    def _refusals(self, card: Card, facts: Facts) -> list[Finding]:
        refused: list[Finding] = []
        if self.updates:
            refused += preexisting.under_linears(facts, self.stage) + preexisting.offloaded(facts, self.stage)
        if what := misfit(card, facts):
            refused.append(Finding.of(ANOTHER_MODEL, self.stage, what, fatal=True))
        if facts.distilled and card.steps:
            what = f"{facts.distilled} and {card.name} each bring a schedule: expected one of them"
            refused.append(Finding.of(TWO_SCHEDULES, self.stage, what, fatal=True))
        if what := missing_scheduler(card):
            refused.append(Finding.of(MISSING_SCHEDULER, self.stage, what, fatal=True))
        return refused

    def facts_after(self, facts: Facts) -> Facts:
        """Its steps, schedule, sampler and identity."""
        card = self.card
        after = replace(facts, adapters=(*facts.adapters, self.identity))
        if not card.steps:
            return after
        sampler = _sampler(card) if facts.pipeline and card.scheduler.name else facts.sampler
        steps = facts.called or card.steps
        sigmas = card.sigmas(steps)
        levels = SigmaSchedule(sigmas).levels
        return replace(after, steps=steps, schedule=sigmas, levels=levels, distilled=card.name, sampler=sampler)

    # ---- acting

    def load(self, target: Target) -> tuple[dict[str, Any], Updates]:
        """The components the card has weights for, and their checked updates. Changes nothing.

        Raises:
            StackError: weights that are missing or do not fit.
        """
        card = self.card
        parts = components_of(card, target.denoiser, target.pipe)
        return parts, load_updates(card, fetched(card), parts, target.pipe) if self.updates else {}

    def finish(self, target: Target, install: Installer, done: str, figures: Mapping[str, Any]) -> Applied:
        """Install the schedule; returns what was done and how calls are changed."""
        card, warned = self.card, []
        if card.steps:
            install_schedule(card, target, install)
        if doubts(card):
            warned.append(doubts(card))
        known = CallParameters.of(target.pipe).names if target.pipe is not None else ()

        def call(given: Mapping[str, Any]) -> TransformedCall:
            return corrected(card, given, known)

        return Applied(done, details=dict(figures), call=call, warnings=warned)


def install_schedule(card: Card, target: Target, install: Installer) -> None:
    """The card's scheduler in the pipeline, or its timetable in the clock of a bare denoiser.

    Raises:
        StackError: see `stack.distill.listed.scheduler_of`.
    """
    if target.pipe is None:
        sigmas = card.sigmas()
        shift = target.clock.timetable.schedule.shift
        timetable = of_flow(SigmaSchedule(sigmas) if sigmas else uniform(card.steps, shift))
        install.set_attribute(target.clock, "timetable", timetable)
        return
    made = scheduler_of(card, target.pipe.scheduler, card.steps)
    if made is not None:
        install.set_attribute(target.pipe, "scheduler", made)
        install.wrap_call(target.pipe, "save_pretrained", _refusing)


def _refusing(save: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        what = "save_pretrained() would write an adapter's scheduler beside weights without the adapter"
        raise StackError(f"{what}: undo() the stack first, or write it with stack.save(folder)")

    return called


def doubts(card: Card) -> str:
    """What of a card is not known for certain, or ''. Weights without a card claim nothing."""
    if card.verified or not card.sources:
        return ""
    return f"unverified card {card.name}: {', '.join(card.doubtful()) or 'what was changed'} not checked at a source"


def _is_base(origin: str, base: tuple[str, ...]) -> bool:
    return origin in base or Path(origin).name in {Path(name).name for name in base}


def _sampler(card: Card) -> str:
    """Why the card's sampler has no numbers, see `why_not_linear`; or ""."""
    if card.scheduler.from_base:
        return f"{card.scheduler.name} takes its settings from the base: expected flow Euler, or DDIM without clipping"
    return why_not_linear(scheduler_of(card, None, card.steps))
