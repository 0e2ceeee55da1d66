"""A range of blocks as one: some in front and behind always run, what lies between is predicted or run as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from ...core.errors import StackError
from ...core.facts import Facts
from ...core.installer import Installer
from ...models.layout import Wiring
from ...models.ports import Streams
from ...runtime.call import Interceptor
from ...runtime.step import Computed
from ...runtime.target import Target
from ..contract import Installs, PolicyLike, Site, SiteState, register_site
from ..controller import CacheController, CacheSlot
from ..gate_policies import DraftPolicy
from .all_blocks import AllBlocks
from .calls import BlockCall, Decides, before_blocks, take

CHECK = "check"  # key of the feature that drafts are checked on


@dataclass(frozen=True)
class BlockRangeSite(Site):
    """A range of blocks as one.

    Attributes:
        front, back: blocks that run on every step.

    Raises:
        StackError: a negative number.
    """

    calibrates_corrector: ClassVar[bool] = True
    block_range: ClassVar[bool] = True
    residual: ClassVar[bool] = False  # whether what the range adds is predicted, rather than its output

    front: int = 0
    back: int = 0

    def check_values(self) -> None:
        if self.front < 0 or self.back < 0:
            raise StackError(f"front and back must be at least 0, got {self.front} and {self.back}")

    @property
    def front_blocks(self) -> int:
        return self.front

    @property
    def back_blocks(self) -> int:
        return self.back

    def state(self, facts: Facts, policy: PolicyLike) -> SiteState | None:
        image, text = facts.image_tokens, facts.tokens - facts.image_tokens
        streams = (text, image) if self.back and text else (image,)
        return SiteState(((*streams, image) if _accepts(policy) else streams,))

    def wants(self, policy: PolicyLike) -> tuple[str, ...]:
        streams = policy.gate is not None or self.front or self.back or self.residual
        return (*super().wants(policy), *(("range",) if streams else ()))

    def build(self, controller: CacheController, target: Target, policy: PolicyLike) -> Installs:
        # What joined blocks add is known only where both ends of the range are seen.
        seen = self.residual and target.wiring.joins
        if policy.gate is None and not (self.front or self.back or seen):
            return AllBlocks(controller, self.residual)
        return BlockRange(controller, self.front, self.back, self.residual, _accepts(policy))


@register_site
@dataclass(frozen=True)
class OutputSite(BlockRangeSite):
    """What comes out of the range, of every stream that is read behind it."""

    name: ClassVar[str] = "output"
    words: ClassVar[str] = "last hidden state before the head"
    noise_feature: ClassVar[str] = "last hidden state"


@register_site
@dataclass(frozen=True)
class ResidualSite(BlockRangeSite):
    """What the range adds."""

    name: ClassVar[str] = "residual"
    words: ClassVar[str] = "what the blocks add"
    noise_feature: ClassVar[str] = "whole residual"
    partial_depth: ClassVar[bool] = True
    residual: ClassVar[bool] = True


def _accepts(policy: PolicyLike) -> Callable[[int, int], float] | None:
    """The bound on a draft's error, where drafts are checked."""
    gate = policy.gate
    return gate.accepts if isinstance(gate, DraftPolicy) and gate.accept else None


@dataclass
class _Step:
    """State of one denoiser call.

    Attributes:
        entry: streams where the range begins.
        first: streams where the blocks begin.
        calls: calls of the range's blocks, kept while they may have to be made after all.
        skips: decision per slot.
    """

    first: Streams
    entry: Streams = field(default_factory=dict)
    calls: list[BlockCall] = field(default_factory=list)
    skips: list[bool] = field(default_factory=list)

    def rows(self, skipped: bool) -> list[int]:
        return [i for i, skip in enumerate(self.skips) if skip is skipped]


class BlockRange:
    """Caches blocks `front` to `-back`; with 0 and 0 all of them, as `AllBlocks` does where a schedule decides.

    Embedders, head, front and back blocks run on every step, with the current time.

    Args:
        residual: predict what the range adds (TeaCache, first-block cache), or its output (the last hidden state).
        accept: for drafts: (step, steps) to the largest relative error of the check that is accepted; None checks
            nothing. Needs a back block, which is run on the predicted streams and compared with its own prediction.
    """

    interceptors: tuple[Interceptor, ...] = ()

    def __init__(
        self,
        controller: Decides,
        front: int = 0,
        back: int = 0,
        residual: bool = False,
        accept: Callable[[int, int], float] | None = None,
    ):
        self.controller, self.front, self.back, self.residual, self.accept = controller, front, back, residual, accept
        self._step: _Step | None = None

    def install(self, denoiser: nn.Module, wiring: Wiring, install: Installer) -> int:
        """Wrap every block; returns how many can be skipped.

        Raises:
            StackError: nothing lies between front and back blocks.
        """
        blocks = len(wiring.blocks(denoiser))
        between = blocks - self.front - self.back
        if between < 1:
            raise StackError(f"{self.front} front and {self.back} back blocks leave none of {blocks} to cache")
        always = (self.front + self.back) / blocks
        self.controller.cached_work = Computed(always, always)

        def visit(number: int, call: BlockCall) -> Streams:
            return self._visit(number, call, blocks)

        before_blocks(denoiser, wiring, install, self.controller.clock, visit)
        return between

    def _visit(self, number: int, call: BlockCall, blocks: int) -> Streams:
        if number == 0:
            self._step = _Step(first=call.streams)
            self.controller.begin(call.streams[call.wiring.output_stream])
        step = self._step
        assert step is not None
        if number < self.front:
            return call.run()
        if number == self.front:
            step.entry = call.streams
            step.skips = self.controller.decide(self._probe(step, call))
        last = blocks - self.back - 1
        if number > last:
            return self._behind(step, call, number == last + 1)
        if self.accept and any(step.skips):
            step.calls.append(call)
        if all(step.skips):
            return self._predicted(step, call) if number == last else call.streams
        return self._between(step, call, first=number == self.front, last=number == last)

    def _between(self, step: _Step, call: BlockCall, first: bool, last: bool) -> Streams:
        if not any(step.skips):
            out = call.run()
            if last:
                self._store(step, out, call.wiring)
            return out
        # Some samples only: the streams shrink to them at the range's first block and grow again behind its last.
        rows = step.rows(skipped=False)
        out = call.run(take(call.streams, rows) if first else None, rows)
        if not last:
            return out
        self._store(step, out, call.wiring)
        whole = {name: tensor.clone() for name, tensor in self._predicted(step, call).items()}
        for name, tensor in out.items():
            whole[name][rows] = tensor
        return whole

    def _probe(self, step: _Step, call: BlockCall) -> torch.Tensor | None:
        kind, stream = self.controller.probe, call.wiring.output_stream
        if kind == "prefix":
            return call.streams[stream] - step.first[stream]
        return call.wiring.modulation(call.block, call.given) if kind == "modulated" else None

    def _features(self, wiring: Wiring) -> list[str]:
        """Streams that somebody reads behind the range."""
        return list(wiring.streams) if self.back else list(wiring.read)

    def _slots(self, step: _Step, skipped: bool) -> list[CacheSlot]:
        return [slot for slot, skip in zip(self.controller.slots, step.skips, strict=True) if skip is skipped]

    def _store(self, step: _Step, out: Streams, wiring: Wiring) -> None:
        slots = self._slots(step, skipped=False)
        entry = take(step.entry, step.rows(skipped=False)) if any(step.skips) else step.entry
        for stream in self._features(wiring):
            if stream in out:
                self.controller.store(stream, out[stream] - entry[stream] if self.residual else out[stream], slots)

    def _predicted(self, step: _Step, call: BlockCall) -> Streams:
        """The range's output on a cached step; rows of samples that ran are whatever they were."""
        slots, some = self._slots(step, skipped=True), not all(step.skips)
        streams = dict(step.entry)
        for stream in self._features(call.wiring):
            if stream not in streams:
                continue
            predicted = self.controller.predict(stream, slots)
            rows = step.rows(skipped=True)
            base = streams[stream][rows] if some else streams[stream]
            value = base + predicted if self.residual else predicted
            streams[stream] = streams[stream].clone().index_copy_(0, _index(rows, value), value) if some else value
        return streams

    def _behind(self, step: _Step, call: BlockCall, first: bool) -> Streams:
        out, stream = call.run(), call.wiring.output_stream
        if not (self.accept and first):
            return out
        ran = step.rows(skipped=False) if any(step.skips) else list(range(len(out[stream])))
        if ran:
            self.controller.store(CHECK, out[stream][ran], self._slots(step, skipped=False))
        return self._checked(step, call, out, stream) if any(step.skips) else out

    def _checked(self, step: _Step, call: BlockCall, out: Streams, stream: str) -> Streams:
        """Compare the last block's output with its own prediction; roll the step back for samples that fail."""
        assert self.accept is not None
        slots, context = self.controller.slots, self.controller.clock.context
        assert context is not None
        bound = self.accept(context.step, context.steps)
        drafted = step.rows(skipped=True)
        expected = self.controller.predict(CHECK, [slots[i] for i in drafted])
        error = ((out[stream][drafted] - expected).abs() / (expected.abs() + 1e-10)).flatten(1).mean(1)
        errors = self.controller.ranks.mean(error).tolist()
        failed = [row for row, e in zip(drafted, errors, strict=True) if not e <= bound]
        if not failed:
            return out
        rejected = [slots[i] for i in failed]
        self.controller.reject(rejected)
        streams = take(step.entry, failed)
        for skipped in step.calls:
            streams = skipped.run(streams, failed)
        for name in self._features(call.wiring):
            entry = step.entry[name][failed]
            self.controller.store(name, streams[name] - entry if self.residual else streams[name], rejected)
        redone = call.run(streams, failed)
        self.controller.store(CHECK, redone[stream], rejected)
        whole = {name: tensor.clone() for name, tensor in out.items()}
        for name, tensor in redone.items():
            whole[name][failed] = tensor
        return whole


def _index(rows: list[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(rows, device=like.device)
