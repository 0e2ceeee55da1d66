"""Makes the pictures of candidates, one after the other on one pipeline, and compares them with the model's own."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..comparison.engine import PipelineEngine
from ..comparison.rows import BASE, BASE_EAGER, Row
from ..core.plan import Plan
from ..measure.perceptual import Perceptual, load_perceptual
from ..measure.timing import RoundRobin
from ..recipe import Recipe
from ..runtime.call_arguments import Call
from ..stack import Stack
from .figures import Compared, Figures, sample
from .limits import Limits
from .space import Stages

TIMED = 2  # samples whose pictures without a stack are timed before the search
TIMED_IN_TURN = 6  # of those that candidates are checked on, about, spread over them
Stop = Callable[[Figures], bool]


@dataclass(frozen=True)
class Asked:
    """A prompt and the seed it is drawn with."""

    prompt: Any
    seed: int


def asked(prompts: Sequence[Any], seed: int) -> list[Asked]:
    """Prompt i with the seed `seed` + i."""
    return [Asked(prompt, seed + number) for number, prompt in enumerate(prompts)]


@dataclass
class Tryout:
    """One pipeline on which candidates are tried; it is left as it was.

    Attributes:
        steps: of the model without a stack.
        limits: decides what has to be measured.
        call: further arguments of every call.
        compile_base: also try compiled blocks, and take the faster; stacks are then compiled as well.
    """

    pipe: Any
    steps: int
    limits: Limits
    call: Call | None = None
    compile_base: bool = True
    _base: PipelineEngine = field(init=False)
    _distance: Perceptual | None = field(init=False)
    _targets: dict[int, torch.Tensor] = field(init=False, default_factory=dict)
    _base_seconds: list[float] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._distance = load_perceptual() if self.limits.max_lpips else None
        self._base = PipelineEngine(self.pipe, {}, self.steps, self.call, output=self.limits.output)

    @property
    def base_seconds(self) -> float:
        """Median time of one picture without a stack."""
        return statistics.median(self._base_seconds)

    @property
    def mode(self) -> str:
        """ "eager" or "compiled": what the model without a stack runs as."""
        return self._base.base.mode

    def plan(self, stages: Stages) -> Plan:
        """The plan of a stack with these stages.

        Raises:
            StackError: a pass cannot work on this model.
        """
        return Stack.from_recipe(self._recipe("plan", stages), self.pipe, steps=self.steps).plan

    def prepare(self, samples: Sequence[Asked], tell: Callable[[str], None]) -> None:
        """Choose the base, time it, and make the pictures that candidates are compared with."""
        how = "compiling its blocks and timing them" if self.compile_base else "first steps"
        tell(f"the model without a stack: {how}")
        self._base.prepare(samples[0].prompt, self.compile_base, controls=False)
        for number, one in enumerate(samples):
            tell(f"the model without a stack: picture {number + 1} of {len(samples)}")
            if number < TIMED:
                self._base_seconds.append(self._timed(one))
            self._target(one)

    def figures(self, stages: Stages, samples: Sequence[Asked], stop: Stop = lambda figures: False) -> Figures:
        """Figures of a candidate, over these samples or as many as it takes to stop.

        Raises:
            StackError: it cannot work on this model.
            RuntimeError: it fails while it runs.
        """
        engine, row = self._candidate("candidate", stages)
        engine.warm_up(row, samples[0].prompt)
        done: list[Compared] = []
        for one in samples:
            done.append(self._compared(engine, row, one))
            if stop(found := Figures.of(done, self.base_seconds)):
                break
        return found

    def in_turn(
        self, candidates: Sequence[Stages], samples: Sequence[Asked], tell: Callable[[str], None]
    ) -> tuple[list[Figures], float]:
        """Figures of each candidate, taken in turn with the base; and the base's median time in these rounds."""
        engines = {str(n): self._candidate(str(n), stages) for n, stages in enumerate(candidates)}
        for engine, row in engines.values():
            engine.warm_up(row, samples[0].prompt)
        done: dict[str, list[Compared]] = {name: [] for name in engines}
        base: list[float] = []
        every = 1 if self.mode == "eager" else max(1, len(samples) // TIMED_IN_TURN)
        for number, name in RoundRobin([BASE, *engines], len(samples)):
            tell(f"checking {len(engines)} stacks: picture {number + 1} of {len(samples)}")
            if name == BASE:
                base += [self._timed(samples[number])] if number % every == 0 else []
            else:
                done[name].append(self._compared(*engines[name], samples[number]))
        seconds = statistics.median(base)
        return [Figures.of(done[name], seconds) for name in engines], seconds

    def recipe(self, name: str, stages: Stages, description: str, notes: dict[str, Any]) -> Recipe:
        """A candidate as a recipe for this model."""
        return Recipe(name=name, description=description, steps=self.steps, stages=stages, notes=notes)

    def _timed(self, one: Asked) -> float:
        """Seconds of the picture without a stack, which is the target as well where blocks are not compiled."""
        made = self._base.generate(self._row(BASE), one.prompt, one.seed)
        if self.mode == "eager":
            self._targets[one.seed] = made.picture
        return made.seconds

    def pictures(self, samples: Sequence[Asked]) -> list[torch.Tensor] | None:
        """What candidates are compared with; None where that is latents."""
        return None if self.limits.output == "latent" else [self._target(one) for one in samples]

    def _target(self, one: Asked) -> torch.Tensor:
        """The picture without a stack and eager: compiled blocks round differently, by 40 dB in bfloat16."""
        if one.seed not in self._targets:
            self._targets[one.seed] = self._base.generate(self._row(BASE_EAGER), one.prompt, one.seed).picture
        return self._targets[one.seed]

    def _row(self, name: str) -> Row:
        return Row(name, "base", "base", steps=self.steps)

    def _compared(self, engine: PipelineEngine, row: Row, one: Asked) -> Compared:
        made = engine.generate(row, one.prompt, one.seed)
        target = self._target(one)
        latent = self.limits.output == "latent"
        return sample(made.picture, target, made.seconds, made.peak_bytes, self._distance, latent)

    def _candidate(self, name: str, stages: Stages) -> tuple[PipelineEngine, Row]:
        recipe = self._recipe(name, stages)
        return self._base.beside({name: recipe.passes()}), Row(
            name, "stack", "all", name, tuple(recipe.stages), self.steps
        )

    def _recipe(self, name: str, stages: Stages) -> Recipe:
        return self.recipe(name, stages, "", {})
