"""Distilled adapters fused into the weights, with the schedule they were made for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ..compat.rules.adapters import LEAST_SHARE, MERGE_INTO_ROUNDED
from ..core.facts import Facts
from ..core.installer import Installer
from ..core.passes import Applied, Finding
from ..runtime.target import Target
from .adapter import Adapter
from .fuse import fuse
from .stage import AdapterStage


@dataclass(frozen=True)
class Distill(AdapterStage):
    """Fuse a LoRA and use its schedule; a card of a whole checkpoint has a schedule only.

    The update is added in fp32 before anything is quantized: merged into an 8-bit weight most of it would be rounded
    away (at |delta| / |W| = 0.3 % only 0.5 % of it survives). Beside weights that are quantized already it stays a
    branch of its own.

    Attributes:
        merge: merge into weights even if they are already quantized; refused where the update would be rounded away.
        fused: the weights already contain the update, as in a saved stack: only its schedule and guidance are used.
    """

    merge: bool = False
    fused: bool = False
    stage: ClassVar[str] = "distill"

    @property
    def updates(self) -> bool:
        return super().updates and not self.fused

    def how(self) -> str:
        if not self.updates:
            what = "in the weights already" if self.fused else "a whole checkpoint"
            return f"{self.card.name}, {what}: its schedule and guidance, no weights change"
        assert self.card.weights is not None
        return f"{self.identity}, fused in fp32 at scale {self.card.weights.scale:g}, before any quantization"

    def check(self, facts: Facts) -> list[Finding]:
        found = super().check(facts)
        packed = facts.weight_bits < 16 or facts.quantized_by
        if not packed or self.merge or not self.updates:
            return found
        by = f" by {facts.quantized_by}" if facts.quantized_by else ""
        return [
            *found,
            Finding.of(
                MERGE_INTO_ROUNDED,
                self.stage,
                f"the weights are already quantized{by}",
                repair="the adapter stays beside them, as a branch of its own",
                replacement=self.beside(),
            ),
        ]

    def beside(self) -> Adapter:
        """The same adapter as a branch of its own."""
        shared: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(AdapterStage) if f.init}
        return Adapter(**shared)

    def apply(self, target: Target, install: Installer) -> Applied:
        """Check everything, then change weights and scheduler.

        Raises:
            StackError: weights that are missing or do not fit, or an update that would be rounded away.
        """
        parts, found = self.load(target)
        if not self.updates:
            return self.finish(target, install, f"schedule of {self.card.name}, 0 linears updated", {"linears": 0})
        assert self.card.weights is not None
        fused = [fuse(parts[name], updates, self.card.weights.scale, install) for name, updates in found.items()]
        linears, share = sum(f.linears for f in fused), min(f.share for f in fused)
        done = f"{linears} linears updated by {self.card.name}"
        applied = self.finish(target, install, done, {"linears": linears, "share": share})
        if share < LEAST_SHARE:
            what = f"only {share:.1%} of the update survived rounding to {fused[0].dtype}"
            applied.warnings.append(f"{what}: keep it beside the weights (switchable=True) ({MERGE_INTO_ROUNDED.tag})")
        return applied
