"""Fitting of FastCache's maps: run the stack uncached, sum up what blocks do, then measure what each map costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..caching.fastcache.linear_map import GramSums, LinearMap
from ..caching.fastcache.maps import APPROXIMATIONS, WHOLE, LinearMaps
from ..compat.calibrated_for import conditions
from ..core.progress import ProgressLine
from ..models.ports import Streams
from ..runtime.pipeline_calls import PipelineCalls
from ..runtime.stack_like import StackLike
from ..runtime.step import StepContext
from .observe import SeeBlock, watching_blocks

STRIDE = 5  # calls between the inputs that "delta" is measured from: gaps of 1 to 5 steps


@dataclass
class MapSums:
    """What "delta" starts from: input and residual of a step 1 to STRIDE steps back, per guidance branch and key."""

    held: dict[tuple[str, str], tuple[int, torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def past(
        self, context: StepContext, key: str, x: torch.Tensor, added: torch.Tensor
    ) -> tuple[torch.Tensor, ...] | None:
        """(input, residual) to start from at this step; None on a request's first. Takes in those of this step."""
        place = context.branch, key
        step, *then = self.held.get(place, (-1, x, added))
        known = step >= 0 and not context.is_first
        if not known or context.step - step >= STRIDE:
            self.held[place] = context.step, x, added
        return tuple(then) if known else None


@dataclass
class Sums:
    """Gram sums of every block and stream, and of the whole stack on its output stream, for every approximation."""

    blocks: int
    stream: str
    grams: dict[str, dict[str, GramSums]] = field(default_factory=lambda: {name: {} for name in APPROXIMATIONS})
    bases: MapSums = field(default_factory=MapSums)
    entry: torch.Tensor | None = None

    def see(self, number: int, streams: Streams, out: Streams, context: StepContext) -> None:
        """One call of one block."""
        for name, x in streams.items():
            self._add(f"{number}/{name}", x, out[name] - x, context)
        if number == 0:
            self.entry = streams[self.stream]
        if number == self.blocks - 1 and self.entry is not None:
            self._add(WHOLE, self.entry, out[self.stream] - self.entry, context)

    def _add(self, key: str, x: torch.Tensor, added: torch.Tensor, context: StepContext) -> None:
        self._gram("static", key, x).add(x, added)
        past = self.bases.past(context, key, x, added)
        if past is not None:
            self._gram("delta", key, x).add(x - past[0], added - past[1])

    def _gram(self, approximation: str, key: str, x: torch.Tensor) -> GramSums:
        if key not in self.grams[approximation]:
            self.grams[approximation][key] = GramSums(x.shape[-1], x.device)
        return self.grams[approximation][key]

    def solve(self, ridge: float, rank: int) -> dict[str, dict[str, LinearMap]]:
        """Approximation to key to map. A slope has no bias: no change of the input changes nothing."""
        return {
            name: {key: g.solve(ridge, rank, name == "static") for key, g in grams.items()}
            for name, grams in self.grams.items()
        }


@dataclass
class Costs:
    """Per block and call: delta of the input, and the error of its output had it been replaced, by approximation."""

    stream: str
    maps: dict[str, dict[str, LinearMap]]
    bases: MapSums = field(default_factory=MapSums)
    before: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    rows: dict[tuple[str, int], list[torch.Tensor]] = field(default_factory=dict)

    def see(self, number: int, streams: Streams, out: Streams, context: StepContext) -> None:
        """One call of one block."""
        x, y, key = streams[self.stream].float(), out[self.stream].float(), f"{number}/{self.stream}"
        past = self.bases.past(context, key, x, y - x)
        if past is not None:
            then, added = past
            self._note("static", number, x, self.before[context.branch, number], self.maps["static"][key](x), y)
            self._note("delta", number, x, then, added + self.maps["delta"][key].slope(x - then), y)
        self.before[context.branch, number] = x

    def _note(
        self, approximation: str, number: int, x: torch.Tensor, then: torch.Tensor, added: torch.Tensor, y: torch.Tensor
    ) -> None:
        pair = torch.stack([(x - then).norm() / then.norm(), (x + added - y).norm() / y.norm()])
        self.rows.setdefault((approximation, number), []).append(pair)

    def tables(self, blocks: int) -> dict[str, torch.Tensor]:
        """Approximation to (2, blocks, calls)."""
        return {
            c: torch.stack([torch.stack(self.rows[c, n], 1) for n in range(blocks)], 1).cpu() for c in APPROXIMATIONS
        }


def fit(
    stack: StackLike,
    prompts: Sequence[str],
    seed: int,
    ridge: float,
    rank: int,
    calls: PipelineCalls,
    bar: ProgressLine,
) -> LinearMaps:
    """Maps of a stack whose cache pass this replaces; the caller puts the cache back."""
    facts, stream = stack.facts, stack.wiring.output_stream
    sums = Sums(facts.blocks, stream)
    _watched(stack, sums.see, calls, prompts, seed, bar, "summing up prompt")
    maps = sums.solve(ridge, rank)
    costs = Costs(stream, maps)
    _watched(stack, costs.see, calls, prompts, seed, bar, "measuring prompt")
    under = conditions(stack.plan.facts_after)
    tables = costs.tables(facts.blocks)
    return LinearMaps(facts.family, facts.blocks, facts.width, maps, tables, made_under=under)


def _watched(
    stack: StackLike,
    see: SeeBlock,
    calls: PipelineCalls,
    prompts: Sequence[str],
    seed: int,
    bar: ProgressLine,
    phase: str,
) -> None:
    """Run the prompts one by one, each with its own seed."""
    stack.replace(watching_blocks(see))
    for _ in calls.per_prompt(stack, prompts, seed, stack.plan.facts_after.asked, bar, phase):
        pass
