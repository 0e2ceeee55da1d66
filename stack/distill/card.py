"""An adapter's card: everything a few-step adapter needs besides its weights, each fact with its source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import annotated_types as limits

from ..core.errors import StackError, choose
from ..core.validate import Setting, Steps
from .schedules import AdapterSchedule

GUIDANCE = {
    "none": "guidance_scale",
    "embedded": "guidance_scale",
    "cfg": "guidance_scale",
    "true_cfg": "true_cfg_scale",
}
# What each scheduler class does between two noise levels.
SAMPLERS = {
    "FlowMatchEulerDiscreteScheduler": "euler",
    "EulerDiscreteScheduler": "euler",
    "FlowMatchLCMScheduler": "lcm",
    "LCMScheduler": "lcm",
    "DDIMScheduler": "ddim",
    "UniPCMultistepScheduler": "unipc",
}
CUSTOM = "custom"
CHECKED, RECALLED = ("src", "card", "iss", "run"), ("inf", "mem")


@dataclass(frozen=True)
class Weights:
    """Where a LoRA is.

    Attributes:
        files: component of the pipeline ("transformer", "transformer_2") to a file, beside the card or in `repo`.
        repo: hub id; "" for files beside the card.
        scale: factor on the update.
        alpha: of every module, or None for what the file says; 0 for its rank.
    """

    files: Mapping[str, str]
    repo: str = ""
    scale: float = 1.0
    alpha: Annotated[float, limits.Ge(0), limits.Le(1e5)] | None = None


@dataclass(frozen=True)
class SchedulerChoice:
    """The scheduler an adapter was made for.

    Attributes:
        name: a diffusers class; "" keeps the pipeline's own.
        sampler: "euler" (deterministic), "lcm" (fresh noise on every step), "ddim", "unipc", or "custom": not in
            diffusers, so that the card cannot be used.
        from_base: take what is not overridden from the base's configuration; otherwise from the class's defaults.
        overrides: arguments of the class.
    """

    name: str = ""
    sampler: str = ""
    from_base: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name in SAMPLERS and self.sampler != SAMPLERS[self.name]:
            raise StackError(f"{self.name} is sampler {SAMPLERS[self.name]!r}, the card says {self.sampler!r}")
        if self.name and self.name not in SAMPLERS and self.sampler != CUSTOM:
            raise choose("scheduler class of sampler " + repr(self.sampler), self.name, list(SAMPLERS))


@dataclass(frozen=True)
class Guidance:
    """What guidance an adapter was made for.

    Attributes:
        kind: "none" (the pipeline's value has no effect), "embedded" (a number the model reads), "cfg" or "true_cfg"
            (two denoiser calls per step above 1).
        value: what the pipeline is called with; None leaves its default.
        most: the largest value that makes sense; 1 where the adapter is free of guidance.
        argument: of the pipeline's call; "" for the kind's usual one.
    """

    kind: str = "none"
    value: float | None = None
    most: float = math.inf
    argument: str = ""

    def __post_init__(self) -> None:
        if self.kind not in GUIDANCE:
            raise choose("kind of guidance", self.kind, list(GUIDANCE))

    @property
    def name(self) -> str:
        """The argument of the pipeline's call."""
        return self.argument or GUIDANCE[self.kind]

    @property
    def limit(self) -> float:
        """The largest value a call may ask for."""
        free = self.kind == "none" or (self.kind != "embedded" and self.value is not None and self.value <= 1)
        return 1.0 if free and self.most == math.inf else self.most

    def words(self) -> str:
        """For tables and plans."""
        if self.kind == "none" or self.value is None:
            return self.kind
        return f"{self.kind} {self.value:g}"


@dataclass(frozen=True)
class Card:
    """A distilled adapter, or a distilled checkpoint, as data.

    Attributes:
        base: hub ids or names of the models it is made for.
        classes: names of the denoiser classes it is for; () where only a family or a pipeline is known.
        pipelines: names of the only pipeline classes it is for; () for any that has such a denoiser.
        config: entries that the denoiser's configuration has to have, where a class has several models.
        family: the wiring's family, for cards that name no class; "" if not known.
        model: hub id of a whole distilled checkpoint, which has no LoRA.
        pipeline: the diffusers class whose call takes the arguments of `guidance` and `call`.
        steps, fewest, most: denoiser steps: usual, and the range it still works in.
        switch: steps of the first of two transformers; 0 where there is one.
        second, second_call: schedule of a second pass over the upscaled latent, and that call's own arguments.
        call: other arguments of the pipeline's call.
        licence, base_licence: of the weights and of the base; "" where not known.
        sources: fact to "[tag] where": src, card, iss and run were read or measured, inf and mem are recalled.
        verified: every fact has a source, and none is recalled.
        folder: where its files are looked for first.
    """

    name: str
    description: str = ""
    base: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    pipelines: tuple[str, ...] = ()
    config: Mapping[str, Setting] = field(default_factory=dict)
    family: str = ""
    model: str = ""
    pipeline: str = ""
    steps: Steps = 0
    fewest: Steps = 0
    most: Steps = 0
    switch: Steps = 0
    weights: Weights | None = None
    schedule: AdapterSchedule = field(default_factory=AdapterSchedule)
    second: AdapterSchedule | None = None
    second_call: Mapping[str, Any] = field(default_factory=dict)
    scheduler: SchedulerChoice = field(default_factory=SchedulerChoice)
    guidance: Guidance = field(default_factory=Guidance)
    call: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""
    base_licence: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    verified: bool = False
    folder: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.steps < 0 or (self.steps and not self.least <= self.steps <= self.largest):
            raise StackError(f"card {self.name}: {self.steps} steps are not within {self.least} to {self.largest}")
        if self.schedule.count and {self.steps, self.least, self.largest} != {self.schedule.count}:
            listed = self.schedule.count
            raise StackError(f"card {self.name}: {listed} noise levels are {listed} steps, no others; got {self.steps}")
        if self.verified and (doubtful := self.doubtful()):
            raise StackError(f"card {self.name} says verified, but these are not: {', '.join(doubtful)}")

    @property
    def least(self) -> int:
        """The fewest steps it works with."""
        return self.fewest or self.steps

    @property
    def largest(self) -> int:
        """The most steps it works with."""
        return self.most or self.steps

    @property
    def denoisers(self) -> int:
        """How many denoisers share its steps."""
        return 2 if self.switch else 1

    @property
    def facts(self) -> tuple[str, ...]:
        """The facts that need a source."""
        config = ("config",) if self.config else ()
        return ("weights" if self.weights else "model", "steps", "schedule", "guidance", "licence", *config)

    def doubtful(self) -> list[str]:
        """Facts that are recalled or have no source."""
        recalled = [fact for fact, source in self.sources.items() if tag(source) in RECALLED]
        return [*recalled, *(fact for fact in self.facts if fact not in self.sources)]

    def sigmas(self, steps: int = 0) -> tuple[float, ...]:
        """Noise levels of a run, largest first and without the final 0; () where the scheduler decides."""
        return self.schedule.sigmas(steps or self.steps) if self.steps or steps else ()

    def second_stage(self) -> Card:
        """The card of the second pass over the upscaled latent.

        Raises:
            StackError: it has none.
        """
        if self.second is None:
            raise StackError(f"card {self.name} has no second stage")
        count = self.second.count
        return replace(
            self, schedule=self.second, steps=count, fewest=0, most=0, call={**self.call, **self.second_call},
            second=None, second_call={},
        )  # fmt: skip


def tag(source: str) -> str:
    """The evidence tag of a source, "[card] ..." to "card".

    Raises:
        StackError: none of the known ones.
    """
    found = source[1:].partition("]")[0] if source.startswith("[") else source
    if found not in (*CHECKED, *RECALLED):
        raise choose("evidence tag", found, (*CHECKED, *RECALLED))
    return found
