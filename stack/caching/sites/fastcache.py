"""FastCache (arXiv 2505.20353): blocks and tokens that hardly change are replaced by fitted linear maps.

What is approximated: a skipped block is linear in its input. Static tokens pass the whole stack by one linear map, and
the tokens that run attend to each other and to all of the text, but not to the static ones. Merged tokens attend as
one, at the position of their cluster's centre, and move alike.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import nn

from ...core.installer import Installer
from ...models.wiring import Wiring
from ...runtime.call import Interceptor
from ...runtime.step_clock import CACHED, FULL, PARTIAL, StepContext
from ..controller import CacheController, CacheSlot
from ..fastcache.maps import WHOLE
from ..fastcache.merging import group, importance
from ..fastcache.replacement import Replacement
from ..fastcache.running import Running, pick, put
from ..fastcache.saliency import moving_tokens, saliency
from ..policy import Policy
from .calls import BlockCall, Streams, before_blocks, take


@dataclass
class _Sample:
    """One sample in one denoiser call: which tokens run, and how far they have come.

    Attributes:
        entry: (1, N, D), the output stream where the blocks begin.
        settled: the warm-up is over and there is something to compare with.
        ran: blocks that ran.
        work: the same, each weighted with the share of tokens in it.
    """

    row: int
    cell: CacheSlot
    entry: torch.Tensor
    streams: Streams
    running: Running
    settled: bool
    ran: int = 0
    work: float = 0.0


class FastCache:
    """Decides per sample, step and block. Samples run one after the other: their tokens differ in number.

    Args:
        policy: its `FastCacheChoices`, `threshold` and `warmup` are read.
    """

    interceptors: tuple[Interceptor, ...] = ()

    def __init__(self, controller: CacheController, policy: Policy):
        self.controller, self.policy = controller, policy
        self._samples: list[_Sample] = []
        self._blocks = 0
        self._made_for: tuple[Hashable, ...] = ()
        self._work: list[float] = []
        self._tick: StepContext
        self._use: Replacement

    def install(self, denoiser: nn.Module, wiring: Wiring, install: Installer) -> int:
        """Stand before every block; returns their number."""
        self._blocks = before_blocks(denoiser, wiring, install, self.controller.clock, self._visit)
        return self._blocks

    def _visit(self, number: int, call: BlockCall) -> Streams:
        stream = call.wiring.output_stream
        if number == 0:
            self._begin(call, stream)
        for sample in self._samples:
            if not sample.running.none:
                self._advance(sample, number, call, stream)
        # Between the blocks the samples are kept here: what the model carries along is not read again.
        return self._end(stream) if number == self._blocks - 1 else call.streams

    def _begin(self, call: BlockCall, stream: str) -> None:
        tokens, controller = call.streams[stream], self.controller
        controller.begin(tokens)
        controller.drop_nonfinite()
        self._tick = controller.now
        made_for = (self._tick.request, tokens.dtype, tokens.device)
        if made_for != self._made_for:
            self._made_for, self._use, self._work = made_for, Replacement(self.policy, tokens), []
        self._samples = [self._open(call, row, cell, stream) for row, cell in enumerate(controller.cells)]
        self._tick.active_set.decide([not sample.settled for sample in self._samples])

    def _open(self, call: BlockCall, row: int, cell: CacheSlot, stream: str) -> _Sample:
        """Choose the tokens of a sample that run."""
        p, running, streams = self.policy, Running(), take(call.streams, [row])
        entry, before = streams[stream], cell.kept.get(WHOLE)
        settled = before is not None and self._tick.step >= p.warmup
        if settled and before is not None:
            if "tokens" in p.parts:
                running.only(moving_tokens(saliency(entry[0], before[0]), p.moving), of=entry.shape[1])
            if "merge" in p.parts and not running.none:
                x, past = pick(entry, running.tokens)[0], pick(before, running.tokens)[0]
                running.merge(group(x, importance(x, past, p.neighbours, p.motion), p.merged))
        return _Sample(row, cell, entry, {**streams, stream: running.enter(entry)}, running, settled)

    def _advance(self, sample: _Sample, number: int, call: BlockCall, stream: str) -> None:
        """Run one block, or replace it by its map."""
        use, kept, entry, sigma = self._use, sample.cell.kept, sample.streams, self._tick.sigma
        places = {name: sample.running.places if name == stream else None for name in entry}
        gated, key = "gate" in self.policy.parts, f"{number}/{stream}"
        skip = gated and sample.settled and use.skips(kept, number, key, entry[stream], places[stream], sigma)
        if skip:
            sample.streams = {n: use.output(kept, f"{number}/{n}", x, places[n]) for n, x in entry.items()}
        else:
            sample.streams = call.run(entry, [sample.row], places[stream])
            sample.ran += 1
            sample.work += entry[stream].shape[1] / sample.entry.shape[1]
        # Published maps need only what the gate compares; moved ones start from every stream.
        for name in entry if self.policy.carry == "moved" else (stream,):
            if gated:
                out = None if skip else sample.streams[name]
                use.remember(kept, f"{number}/{name}", entry[name], out, places[name])

    def _end(self, stream: str) -> Streams:
        """Bring all tokens back to their places, and say what ran."""
        samples, blocks = self._samples, self._blocks
        others = [name for name in samples[0].streams if name != stream]
        out = {name: torch.cat([sample.streams[name] for sample in samples]) for name in others}
        out[stream] = torch.cat([self._closed(sample, stream) for sample in samples])
        full = all(sample.ran == blocks and sample.running.whole for sample in samples)
        none = not any(sample.ran for sample in samples)
        self._tick.active_set.kind = FULL if full else CACHED if none else PARTIAL
        self._work.append(sum(sample.work for sample in samples) / (len(samples) * blocks))
        self.controller.figures["block_share"] = sum(self._work) / len(self._work)
        self._samples = []
        return out

    def _closed(self, sample: _Sample, stream: str) -> torch.Tensor:
        """The output stream (1, N, D) of a sample: what ran as it came out, what did not by the stack's own map."""
        running, kept, entry, use = sample.running, sample.cell.kept, sample.entry, self._use
        out = running.leave(sample.streams[stream], entry)
        split = "tokens" in self.policy.parts
        whole = put(use.output(kept, WHOLE, entry, None), running.tokens, out) if running.tokens is not None else out
        if split and self.policy.carry == "moved":
            use.remember(kept, WHOLE, pick(entry, running.tokens), out, running.tokens)
        else:
            kept[WHOLE] = entry  # only compared with
        wide = torch.promote_types(whole.dtype, torch.float32)
        sample.cell.guard.note(torch.linalg.vector_norm(whole, dtype=wide)[None])
        return whole
