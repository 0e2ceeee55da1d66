"""FastCache (arXiv 2505.20353): blocks and tokens that hardly change are replaced by fitted linear maps.

What is approximated: a skipped block is linear in its input. Static tokens pass the whole stack by one linear map, and
the tokens that run attend to each other and to all of the text, but not to the static ones. Merged tokens attend as
one, at the position of their cluster's centre, and move alike.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from ...compat.rules.rounded_caches import FITTED_ELSEWHERE
from ...compat.rules.state import FEWER_TOKENS
from ...core.facts import Facts
from ...core.installer import Installer
from ...core.passes import Finding
from ...models.layout import Wiring
from ...models.ports import Streams
from ...runtime.call import Interceptor, holds_collections
from ...runtime.step import CACHED, FULL, PARTIAL, Computed, StepContext
from ...runtime.target import Target
from ..contract import Installs, PolicyLike, Site, SiteState, register_site
from ..controller import CacheController, CacheSlot
from ..fastcache.choices import RESIDUAL, FastCacheChoices
from ..fastcache.maps import WHOLE
from ..fastcache.merging import group, importance
from ..fastcache.replacement import Replacement
from ..fastcache.running import Running, pick, put
from ..fastcache.saliency import moving_tokens, saliency
from ..fitted import Fitted
from .calls import BlockCall, before_blocks, take


@register_site
@dataclass(frozen=True)
class FastCacheSite(FastCacheChoices, Site):
    """Blocks and tokens on their own."""

    name: ClassVar[str] = "fastcache"
    all_tokens: ClassVar[bool] = True
    words: ClassVar[str] = "every block, and tokens on their own"
    correctable: ClassVar[bool] = False
    decides: ClassVar[bool] = True
    per_sample: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("blocks", "range", "rows")

    def wants(self, policy: PolicyLike) -> tuple[str, ...]:
        return (*super().wants(policy), *(("along",) if self.fewer_tokens else ()))

    @property
    def bound(self) -> str:
        return f"threshold {self.threshold:.3g}"

    @property
    def fitted(self) -> Mapping[str, Fitted | None]:
        return {"maps": self.maps}

    def lines(self, policy: PolicyLike, facts: Facts) -> list[str]:
        found = []
        if "gate" in self.parts and self.approximation == RESIDUAL:
            limit = f"its input changed by at most {self.threshold:.1%} since it ran"
            found.append(f"gate: a block adds what it added when it last ran, where {limit}")
        elif "gate" in self.parts and self.maps is not None:
            scales = self.maps.scales(self.approximation, self.threshold)
            cost, runs = f"{self.threshold:.1%} of a block's output on average", scales.count(0)
            found.append(f"gate: maps that cost at most {cost} replace it; {runs} of {len(scales)} blocks always run")
        if "gate" in self.parts and self.adaptive:
            found.append(
                "where its input changed by at most {:g} + {:g} delta + {:g} t + {:g} t^2".format(*self.adaptive)
            )
        if "tokens" in self.parts:
            how = "with what they added before" if self.approximation == RESIDUAL else "by one linear map"
            pass_by = f"pass all blocks {how}"
            found.append(f"tokens: those that move less than {self.moving:g} of the mean {pass_by}")
        if "merge" in self.parts:
            found.append(f"merge: the tokens that run are merged to {self.merged:.0%}")
        return [*found, f"the first {policy.schedule.warmup} steps run whole; saving depends on the picture"]

    def refuses(self, facts: Facts, stage: str) -> list[Finding]:
        """Maps that are missing or of another model are refused: a default in their place would be noise."""
        if self.needs_maps and self.maps is None:
            what = "FastCache replaces blocks by linear maps, and none have been fitted"
            return [Finding(stage, what, repair="stack.fit_maps(prompts), or maps='file.safetensors'", fatal=True)]
        if self.needs_maps and self.maps is not None and (misfit := self.maps.misfit(facts)):
            hint = "stack.fit_maps(prompts)"
            return [Finding.of(FITTED_ELSEWHERE, stage, f"the maps were {misfit}", repair=hint, fatal=True)]
        if self.fewer_tokens:
            cost = "costs more than it saves: parts=('gate',) does not"
            what = f"tokens that run lose the others as context, which {cost}"
            return [Finding.of(FEWER_TOKENS, stage, what, note=True)]
        return []

    def threshold_scaled(self, factor: float) -> FastCacheSite | None:
        return replace(self, threshold=self.threshold * factor) if "gate" in self.parts else None

    def state(self, facts: Facts, policy: PolicyLike) -> SiteState | None:
        """Where it moves what a block added: that and the block's input, of every stream."""
        image, moves = facts.image_tokens, self.approximation != "static"
        per_block = (2 * facts.tokens if moves else image) * ("gate" in self.parts)
        tokens = per_block * facts.blocks + (2 * image if moves and "tokens" in self.parts else image)
        return SiteState(kept=tokens * facts.width)

    def build(self, controller: CacheController, target: Target, policy: PolicyLike) -> Installs:
        return FastCache(controller, self, policy.schedule.warmup)


@dataclass
class _Sample:
    """One sample in one denoiser call: which tokens run, and how far they have come.

    Attributes:
        entry: (1, N, D), the output stream where the blocks begin.
        settled: the warm-up is over and there is something to compare with.
        ran: blocks that ran.
        work: the same, each weighted with the share of tokens in it, and of pairs of tokens.
    """

    row: int
    slot: CacheSlot
    entry: torch.Tensor
    streams: Streams
    running: Running
    settled: bool
    ran: int = 0
    work: tuple[float, float] = (0.0, 0.0)


class FastCache:
    """Decides per sample, step and block. Samples some of whose tokens run go one by one: these differ in number.

    Args:
        choices: what of FastCache is on.
        warmup: the first steps run whole.
    """

    interceptors: tuple[Interceptor, ...] = ()

    def __init__(self, controller: CacheController, choices: FastCacheChoices, warmup: int):
        self.controller, self.choices, self.warmup = controller, choices, warmup
        self._samples: list[_Sample] = []
        self._plain = False
        self._blocks = 0
        self._made_for: tuple[Hashable, ...] = ()
        self._work: list[float] = []
        self._now: StepContext
        self._use: Replacement

    def install(self, denoiser: nn.Module, wiring: Wiring, install: Installer) -> int:
        """Stand before every block; returns their number."""
        self._blocks = before_blocks(denoiser, wiring, install, self.controller.clock, self._visit)
        return self._blocks

    def _visit(self, number: int, call: BlockCall) -> Streams:
        stream = call.wiring.output_stream
        if number == 0:
            self._plain = self._unaware(len(call.streams[stream]))
            self._begin(call, stream)
        if self._plain:
            return call.run()
        self._advance(number, call, stream)
        # Between the blocks the samples are kept here: what the model carries along is not read again.
        return self._end(stream) if number == self._blocks - 1 else call.streams

    def _unaware(self, batch: int) -> bool:
        """Whether the call brings what samples that are kept here would miss: then its blocks run as they are."""
        controller = self.controller
        if not controller.adds_between and (batch == 1 or not holds_collections(controller.given())):
            return False
        controller.journal.warn("FastCache knows of no control residuals, nor of images of a batch: steps run in full")
        return True

    def _begin(self, call: BlockCall, stream: str) -> None:
        tokens, controller = call.streams[stream], self.controller
        controller.begin(tokens)
        controller.drop_nonfinite()
        self._now = controller.now
        if self._plain:
            return
        made_for = (self._now.request, tokens.dtype, tokens.device)
        if made_for != self._made_for:
            self._made_for, self._use, self._work = made_for, Replacement(self.choices, tokens), []
        self._samples = [self._open(call, row, slot, stream) for row, slot in enumerate(controller.slots)]

    def _open(self, call: BlockCall, row: int, slot: CacheSlot, stream: str) -> _Sample:
        """Choose the tokens of a sample that run."""
        p, running, streams = self.choices, Running(), take(call.streams, [row])
        entry, before = streams[stream], slot.kept.get(WHOLE)
        settled = before is not None and self._now.step >= self.warmup
        if settled and before is not None:
            if "tokens" in p.parts:
                running.only(moving_tokens(saliency(entry[0], before[0]), p.moving), of=entry.shape[1])
            if "merge" in p.parts and not running.none:
                x, past = pick(entry, running.tokens)[0], pick(before, running.tokens)[0]
                running.merge(group(x, importance(x, past, p.neighbours, p.motion), p.merged))
        return _Sample(row, slot, entry, {**streams, stream: running.enter(entry)}, running, settled)

    def _advance(self, number: int, call: BlockCall, stream: str) -> None:
        """Run one block for the samples that need it, and replace it by its map for the others."""
        going = [sample for sample in self._samples if not sample.running.none]
        skips = [self._skips(sample, number, stream) for sample in going]
        ran = self._run([sample for sample, skip in zip(going, skips, strict=True) if not skip], call, stream)
        for sample in going:
            self._passed(sample, number, stream, ran.get(sample.row))

    def _skips(self, sample: _Sample, number: int, stream: str) -> bool:
        if "gate" not in self.choices.parts or not sample.settled:
            return False
        x, places, sigma = sample.streams[stream], sample.running.places, self._now.sigma
        return self._use.skips(sample.slot.kept, number, f"{number}/{stream}", x, places, sigma)

    def _run(self, samples: Sequence[_Sample], call: BlockCall, stream: str) -> dict[int, Streams]:
        """What a block makes of these samples, by row: in one call where all their tokens run, else one by one."""
        ran = {
            sample.row: call.run(sample.streams, [sample.row], sample.running.places)
            for sample in samples
            if not sample.running.whole
        }
        whole = [sample for sample in samples if sample.running.whole]
        if whole:
            joined = {name: torch.cat([sample.streams[name] for sample in whole]) for name in whole[0].streams}
            out = call.run(joined, [sample.row for sample in whole])
            ran |= {sample.row: {name: x[at : at + 1] for name, x in out.items()} for at, sample in enumerate(whole)}
        return ran

    def _passed(self, sample: _Sample, number: int, stream: str, ran: Streams | None) -> None:
        """A sample is behind a block, which ran for it or not."""
        use, kept, entry = self._use, sample.slot.kept, sample.streams
        places = {name: sample.running.places if name == stream else None for name in entry}
        if ran is None:
            made = [name for name in entry if name == stream or use.knows(kept, f"{number}/{name}")]
            sample.streams = {n: use.output(kept, f"{number}/{n}", entry[n], places[n]) for n in made}
        else:
            sample.streams = ran
            sample.ran += 1
            share = entry[stream].shape[1] / sample.entry.shape[1]
            sample.work = sample.work[0] + share, sample.work[1] + share**2
        # Published maps need only what the gate compares; the others start from every stream.
        for name in entry if self.choices.approximation != "static" else (stream,):
            if "gate" in self.choices.parts and (ran is None or name in ran):
                use.remember(kept, f"{number}/{name}", entry[name], ran[name] if ran else None, places[name])

    def _end(self, stream: str) -> Streams:
        """Bring all tokens back to their places, and say what ran."""
        samples, blocks = self._samples, self._blocks
        others = [name for name in samples[0].streams if name != stream]
        out = {name: torch.cat([sample.streams[name] for sample in samples]) for name in others}
        out[stream] = torch.cat([self._closed(sample, stream) for sample in samples])
        full = all(sample.ran == blocks and sample.running.whole for sample in samples)
        none = not any(sample.ran for sample in samples)
        self._now.outcome.kind = FULL if full else CACHED if none else PARTIAL
        linears, attention = (
            sum(parts) / (len(samples) * blocks) for parts in zip(*(s.work for s in samples), strict=True)
        )
        self._now.outcome.computed = Computed(linears, attention)
        self._work.append(linears)
        self.controller.figures["block_share"] = sum(self._work) / len(self._work)
        self._samples = []
        return out

    def _closed(self, sample: _Sample, stream: str) -> torch.Tensor:
        """The output stream (1, N, D) of a sample: what ran as it came out, what did not by the stack's own map."""
        running, kept, entry, use = sample.running, sample.slot.kept, sample.entry, self._use
        out = running.leave(sample.streams[stream], entry)
        split = "tokens" in self.choices.parts
        whole = put(use.output(kept, WHOLE, entry, None), running.tokens, out) if running.tokens is not None else out
        if split and self.choices.approximation != "static":
            use.remember(kept, WHOLE, pick(entry, running.tokens), out, running.tokens)
        else:
            kept[WHOLE] = entry  # only compared with
        wide = torch.promote_types(whole.dtype, torch.float32)
        sample.slot.guard.note(torch.linalg.vector_norm(whole, dtype=wide)[None])
        return whole
