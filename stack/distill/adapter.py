"""Distilled adapters beside the weights: a branch that can be exchanged without touching what is below."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..core.errors import StackError
from ..core.installer import Installer
from ..core.passes import Applied
from ..runtime.target import Target
from .side import put_beside
from .stage import AdapterStage


@dataclass(frozen=True)
class Adapter(AdapterStage):
    """Keep a LoRA as a low-rank branch beside each linear, quantized or not, and use its schedule.

    It costs two thin products per linear on every call, and is exchanged without quantizing anything again.
    """

    stage: ClassVar[str] = "adapter"

    def how(self) -> str:
        if self.card.weights is None:
            raise StackError(f"{self.card.name} is a whole checkpoint: it has no branch; leave switchable out")
        return f"{self.identity}, as a branch beside the weights at scale {self.card.weights.scale:g}"

    def apply(self, target: Target, install: Installer) -> Applied:
        """Check everything, then put a branch beside each linear.

        Raises:
            StackError: weights that are missing or do not fit, or a card without any.
        """
        parts, found = self.load(target)
        if self.card.weights is None:
            raise StackError(self.how())
        scale = self.card.weights.scale
        linears = sum(put_beside(parts[name], updates, scale, install) for name, updates in found.items())
        done = f"{linears} linears with {self.card.name} beside them"
        return self.finish(target, install, done, {"linears": linears})
