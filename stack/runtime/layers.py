"""The passes on a model: put on, taken off from the top, or made final."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

from ..core.errors import StackError
from ..core.facts import Facts
from ..core.installer import Installer
from ..core.passes import Applied, Pass
from ..core.plan import Planned
from .target import Target


@dataclass
class Layer:
    """An applied pass and the changes it made.

    Attributes:
        before: the facts it met.
        applied: what it did; as good as nothing while it is being put on.
    """

    wanted: Pass
    before: Facts
    install: Installer = field(default_factory=Installer)
    applied: Applied = field(default_factory=lambda: Applied("being put on"))

    def fits(self, planned: Planned) -> bool:
        """Whether it is what a plan wants at this place. Only a cache is made for the number of steps."""
        if self.wanted != planned.run:
            return False
        return self.before == planned.before or (
            self.wanted.stage != "cache" and _any_steps(self.before) == _any_steps(planned.before)
        )


class Layers(list[Layer]):
    """Applied passes in running order.

    Attributes:
        version: counts the changes, for stamps on cached state.
        final: how many of the lowest can no longer be taken off.
    """

    def __init__(self) -> None:
        super().__init__()
        self.version, self.final = 0, 0

    def push(self, target: Target, stages: Sequence[Planned]) -> None:
        """Apply planned passes on top. If one breaks off, what it has done so far is the top layer."""
        for planned in stages:
            self.version += 1
            layer = Layer(planned.run, planned.before)
            self.append(layer)
            target.now = planned.before
            layer.applied = planned.run.apply(target, layer.install)

    def let_go(self) -> None:
        """Drop what passes keep between calls."""
        for layer in self:
            layer.applied.reset()

    def common(self, stages: Sequence[Planned]) -> int:
        """How many of the lowest layers are what a plan wants."""
        pairs = zip(self, stages, strict=False)
        return len(list(takewhile(lambda pair: pair[0].fits(pair[1]), pairs)))

    def intact(self) -> int:
        """How many of the lowest layers still have every wrapper in its place."""
        return len(list(takewhile(lambda layer: layer.install.intact, self)))

    def check(self, depth: int) -> None:
        """Refuse to take off layers that are final.

        Raises:
            StackError: one of those above `depth` is.
        """
        if depth < self.final:
            kept = " and ".join(layer.wanted.stage for layer in self[: self.final])
            raise StackError(f"cannot take off {kept}: freeze() dropped the original weights; load the model again")

    def shrink(self, depth: int) -> None:
        """Take off every layer above `depth`, the top one first. If this breaks off, a further call goes on."""
        while len(self) > max(depth, self.final):
            self.version += 1
            self[-1].install.rollback()
            self.pop()

    def freezable(self) -> int:
        """How many of the lowest layers freezing makes final: everything up to quantization.

        Raises:
            StackError: nothing is quantized, or some steps need the original weights.
        """
        quantized = next((n for n, layer in enumerate(self, 1) if layer.wanted.stage == "quantize"), 0)
        if not quantized:
            raise StackError("freeze() drops what quantize() replaced: expected a stack with quantize()")
        if self[quantized - 1].applied.details["needs_originals"]:
            raise StackError("freeze() cannot drop the original weights: ends='keep' runs some steps with them")
        return quantized

    def freeze(self, final: int) -> None:
        """Make so many of the lowest layers final, and drop the weights they replaced."""
        self.final = final  # first: a layer that has lost some originals cannot be taken off
        for layer in self[:final]:
            layer.install.forget()


def _any_steps(facts: Facts) -> Facts:
    """Facts without what follows from the number of steps and the scheduler."""
    own = replace(facts, steps=1, called=0, ladder=0, sampler="", schedule=(), levels=(), switches=())
    return replace(own, attention_density=1.0)
