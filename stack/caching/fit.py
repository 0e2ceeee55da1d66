"""Fitting of FastCache's maps: run the stack uncached, sum up what blocks do, then measure what each map costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch

from ..clock import Tick
from ..errors import StackError
from ..facts import Facts
from ..install import Installer
from ..passes.base import Applied, Finding, Target
from .linear_map import GramSums, LinearMap
from .maps import CARRIES, WHOLE, LinearMaps
from .sites.calls import BlockCall, Streams, before_blocks

if TYPE_CHECKING:
    from ..builder import Stack

STRIDE = 5  # calls between the inputs that "moved" is measured from: gaps of 1 to 5 steps
See = Callable[[int, Streams, Streams, Tick], None]


@dataclass(frozen=True)
class Watch:
    """A pass in the cache's place that changes nothing and shows every block's input and output streams."""

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


@dataclass
class Sums:
    """Gram sums of every block and stream, and of the whole stack on its output stream."""

    blocks: int
    stream: str
    grams: dict[str, GramSums] = field(default_factory=dict)
    entry: torch.Tensor | None = None

    def see(self, number: int, streams: Streams, out: Streams, tick: Tick) -> None:
        """One call of one block."""
        for name, x in streams.items():
            self._add(f"{number}/{name}", x, out[name] - x)
        if number == 0:
            self.entry = streams[self.stream]
        if number == self.blocks - 1 and self.entry is not None:
            self._add(WHOLE, self.entry, out[self.stream] - self.entry)

    def _add(self, key: str, x: torch.Tensor, y: torch.Tensor) -> None:
        self.grams.setdefault(key, GramSums(x.shape[-1], x.device)).add(x, y)


@dataclass
class Costs:
    """Per block and call: delta of the input, and the error of its output had it been replaced, under each carry.

    Attributes:
        before: input of the previous step, per branch and block.
        base: (step, input, residual) that "moved" starts from, per branch and block.
        rows: (delta, error) per carry and block.
    """

    stream: str
    maps: dict[str, LinearMap]
    before: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    base: dict[tuple[str, int], tuple[int, torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    rows: dict[tuple[str, int], list[torch.Tensor]] = field(default_factory=dict)

    def see(self, number: int, streams: Streams, out: Streams, tick: Tick) -> None:
        """One call of one block."""
        x, y, place = streams[self.stream].float(), out[self.stream].float(), (tick.branch, number)
        fitted = self.maps[f"{number}/{self.stream}"]
        if tick.is_first:
            self.before.pop(place, None)
            self.base.pop(place, None)
        if place in self.before:
            self._note("map", number, x, self.before[place], fitted(x), y)
            _, then, added = self.base[place]
            self._note("moved", number, x, then, added + fitted.slope(x - then), y)
        if place not in self.base or tick.step - self.base[place][0] >= STRIDE:
            self.base[place] = tick.step, x, y - x
        self.before[place] = x

    def _note(
        self, carry: str, number: int, x: torch.Tensor, then: torch.Tensor, added: torch.Tensor, y: torch.Tensor
    ) -> None:
        pair = torch.stack([(x - then).norm() / then.norm(), (x + added - y).norm() / y.norm()])
        self.rows.setdefault((carry, number), []).append(pair)

    def tables(self, blocks: int) -> dict[str, torch.Tensor]:
        """Carry to (2, blocks, calls)."""
        return {c: torch.stack([torch.stack(self.rows[c, n], 1) for n in range(blocks)], 1).cpu() for c in CARRIES}


def fit(
    stack: Stack, stream: str, prompts: Sequence[str], seed: int, ridge: float, rank: int, progress: bool
) -> LinearMaps:
    """Maps of a stack whose cache pass this replaces; the caller puts the cache back.

    Raises:
        StackError: no pipeline, or no prompts.
    """
    if stack.pipe is None:
        raise StackError("maps are fitted on pictures: expected Stack(pipeline), got a bare denoiser")
    if not prompts:
        raise StackError("expected at least 1 prompt to fit the maps on, got none")
    facts, sums = stack.facts, Sums(stack.facts.blocks, stream)
    _watched(stack, sums.see, prompts, seed, "summing" if progress else "")
    maps = {key: gram.solve(ridge, rank) for key, gram in sums.grams.items()}
    costs = Costs(stream, maps)
    _watched(stack, costs.see, prompts, seed, "measuring" if progress else "")
    return LinearMaps(facts.family, facts.blocks, facts.width, maps, costs.tables(facts.blocks))


def _watched(stack: Stack, see: See, prompts: Sequence[str], seed: int, title: str) -> None:
    """Run the prompts one by one, each with its own seed; a bar with this title, or none."""
    from rich.progress import track

    stack.replace(Watch(see))
    for i, prompt in enumerate(track(prompts, title, transient=True, disable=not title)):
        generator = torch.Generator().manual_seed(seed + i)
        stack(prompt, num_inference_steps=stack.plan.facts_after.steps, generator=generator, output_type="pt")
