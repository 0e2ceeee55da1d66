"""A stack on a model of fake CUDA tensors: calls and waits of every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from stack import Stack

from ..caching.fitted import fitted
from ..wirings import WIRINGS
from .fake import fake_cuda
from .models import BLOCKS, FAMILIES, STEPS, WIDTHS, Loop, Step, on_cuda, scheduler


@dataclass(frozen=True)
class Run:
    """One request.

    Attributes:
        kinds: of every step: full, cached or partial.
        steps: calls and waits of every step.
    """

    kinds: list[str]
    steps: list[Step]

    def waits(self, *kinds: str) -> list[str]:
        """What made the host wait on the steps of these kinds."""
        return [wait for _, waits in self.of(*kinds) for wait in waits]

    def of(self, *kinds: str) -> list[Step]:
        """The steps of these kinds."""
        return [step for kind, step in zip(self.kinds, self.steps, strict=True) if kind in kinds]


@cache
def preset(name: str, family: str = "flux", batch: int = 1) -> Run:
    """One request under a cache."""
    options = fitted(name, WIRINGS[family], BLOCKS, WIDTHS[family], STEPS)
    return run(lambda stack: stack.cache(name, **options), family, batch)


def run(build: Callable[[Stack], Stack], family: str = "flux", batch: int = 1, steps: int = STEPS) -> Run:
    """One request of a stack on a family's model."""
    make, inputs = FAMILIES[family]
    sigma_schedule = scheduler(steps)
    model = make()
    with fake_cuda() as recorder:
        pipe = Loop(on_cuda(model), sigma_schedule)
        stack = build(Stack(pipe, steps=steps)).apply()
        pipe(inputs(batch), recorder)
        return Run([entry.kind for entry in stack._target.journal.entries], pipe.steps)
