"""The passes on a model: put on, taken off from the top, or made final."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import StackError
from ..core.installer import Installer
from ..core.passes import ORDER, Applied, Pass
from ..core.plan import Planned
from .target import Target


@dataclass
class Layer:
    """An applied pass and the changes it made."""

    wanted: Pass
    install: Installer
    applied: Applied


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
        """Apply planned passes on top. One that fails is taken back before its error goes on."""
        for each in stages:
            install = Installer()
            target.now = each.before
            try:
                applied = each.run.apply(target, install)
            except BaseException:
                install.rollback()
                raise
            self.append(Layer(each.run, install, applied))
            self.version += 1

    def let_go(self) -> None:
        """Drop what passes keep between calls."""
        for layer in self:
            layer.applied.reset()

    def below(self, stage: str) -> int:
        """How many layers lie below a stage."""
        return sum(ORDER.index(layer.wanted.stage) < ORDER.index(stage) for layer in self)

    def shrink(self, depth: int) -> None:
        """Take off every layer above `depth`.

        Raises:
            StackError: one of them is final. Nothing is taken off then.
        """
        if depth < self.final:
            kept = " and ".join(layer.wanted.stage for layer in self[: self.final])
            raise StackError(f"cannot take off {kept}: freeze() dropped the original weights; load the model again")
        while len(self) > depth:
            self.pop().install.rollback()
            self.version += 1

    def freeze(self) -> None:
        """Make everything up to quantization final, and drop the weights it replaced.

        Raises:
            StackError: nothing is quantized, or some steps need the original weights.
        """
        quantized = next((layer for layer in self if layer.wanted.stage == "quantize"), None)
        if quantized is None:
            raise StackError("freeze() drops what quantize() replaced: expected a stack with quantize()")
        if quantized.applied.details["needs_originals"]:
            raise StackError("freeze() cannot drop the original weights: ends='keep' runs some steps with them")
        self.final = self.index(quantized) + 1
        for layer in self[: self.final]:
            layer.install.forget()
