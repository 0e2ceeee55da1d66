"""A pass that changes nothing and looks at every block, for what has to be fitted or measured on features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from ..clock import Tick
from ..facts import Facts
from ..install import Installer
from ..passes.base import Applied, Finding, Target
from .sites.calls import BlockCall, Streams, before_blocks

See = Callable[[int, Streams, Streams, Tick], None]


@dataclass(frozen=True)
class Watch:
    """Stands in the cache's place. `see` is told the block's number, its input and output streams, and the tick."""

    see: See
    stage: ClassVar[str] = "cache"

    def describe(self, facts: Facts) -> list[str]:
        return ["every block runs and is watched"]

    def check(self, facts: Facts) -> list[Finding]:
        return []

    def facts_after(self, facts: Facts) -> Facts:
        return facts

    def apply(self, target: Target, install: Installer) -> Applied:
        def visit(number: int, call: BlockCall) -> Streams:
            out = call.run()
            assert target.clock.tick is not None
            self.see(number, call.streams, out, target.clock.tick)
            return out

        blocks = before_blocks(target.denoiser, target.wiring, install, visit)
        return Applied(summary=f"{blocks} blocks watched")
