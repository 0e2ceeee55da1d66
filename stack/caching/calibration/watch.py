"""A pass that changes nothing and looks at every block, for what has to be fitted or measured on features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...clock import Tick
from ...install import Installer
from ...passes.base import Applied, Target
from ..sites.calls import BlockCall, Streams, before_blocks
from .standin import StandIn

See = Callable[[int, Streams, Streams, Tick], None]


@dataclass(frozen=True)
class Watch(StandIn):
    """Stands in the cache's place. `see` is told the block's number, its input and output streams, and the tick."""

    see: See

    def apply(self, target: Target, install: Installer) -> Applied:
        def visit(number: int, call: BlockCall) -> Streams:
            out = call.run()
            assert target.clock.tick is not None
            self.see(number, call.streams, out, target.clock.tick)
            return out

        blocks = before_blocks(target.denoiser, target.wiring, install, visit)
        return Applied(summary=f"{blocks} blocks watched")
