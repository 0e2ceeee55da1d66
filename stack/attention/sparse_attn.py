"""Block-sparse attention: each block of image queries attends to the text and to the best-matching key blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from ..compat.rules.sparse import (
    FEW_DENSE_STEPS,
    FEWEST_DENSE,
    NO_STEP_LEFT_SPARSE,
    OTHER_PROCESSORS,
    SPARSE_DOES_NOT_PAY,
)
from ..core.errors import StackError
from ..core.facts import Facts
from ..core.installer import Installer
from ..core.passes import Applied, Finding, field_options
from ..runtime.target import Target
from .maps import FINEST
from .mass import SAMPLED
from .reuse import Maps
from .sparsity import EVERY, SparsityPolicy, Tally

if TYPE_CHECKING:
    from .flex import Flex

DENSE = "stays dense"
FAMILIES = ("flux", "dit", "hunyuan-video")  # those of `stack.models.attention`, which needs diffusers


@dataclass(frozen=True)
class SparseAttention:
    """Training-free block-sparse attention.

    Text keys and a block's own neighbourhood are always kept, text queries attend to everything, and maps are chosen
    per sample and head. The first steps and the last one stay dense, and so does any call whose shapes a dense kernel
    handles faster.

    With a cache above it, a full step is an anchor, and what is computed on the others (front and back blocks, some
    tokens, drafts) is not. Without a cache every step is full; with `reuse_maps`, those on which maps are made.

    Attributes:
        keep: share of image key blocks that each query block attends to, in (0, 1].
        block: query block in tokens, a multiple of 64; None takes the device's best (256 on a CPU, 128 on CUDA).
        dense_first: dense steps at the start, at least 1; None is a tenth of the schedule.
        dense_last: dense steps at the end.
        even_if_slower: skip the rule that keeps attention dense where sparsity would not pay; where not even one block
            could be dropped, query blocks are cut as short as they can be.
        anchor_keep: the share kept on full steps, at least `keep`; None keeps `keep`, 1 computes them densely.
        reuse_maps: maps are made on full steps and used between them while the softmax mass they drop, estimated on
            sampled queries, has grown by no more than this, in [0, 1); 0 makes them in every call.
    """

    keep: float = 0.5
    block: int | None = None
    dense_first: int | None = None
    dense_last: int = 1
    even_if_slower: bool = False
    anchor_keep: float | None = None
    reuse_maps: float = 0.0
    stage: ClassVar[str] = "sparse_attn"

    def __post_init__(self) -> None:
        if not _is_number(self.keep) or not 0 < self.keep <= 1:
            raise StackError(f"keep must be in (0, 1], got {self.keep!r}: it is the share of key blocks attended to")
        if self.anchor_keep is not None and not (_is_number(self.anchor_keep) and self.keep <= self.anchor_keep <= 1):
            raise StackError(f"anchor_keep must be in [keep, 1], here [{self.keep:g}, 1], got {self.anchor_keep!r}")
        if not _is_number(self.reuse_maps) or not 0 <= self.reuse_maps < 1:
            raise StackError(
                f"reuse_maps must be in [0, 1), got {self.reuse_maps!r}: a share of the attention, try 0.02"
            )
        if self.block is not None and (not isinstance(self.block, int) or self.block < FINEST or self.block % FINEST):
            raise StackError(
                f"block must be a multiple of {FINEST} tokens, got {self.block!r}: try 256, or leave it out"
            )
        if self.dense_first is not None and (not isinstance(self.dense_first, int) or self.dense_first < 1):
            raise StackError(f"dense_first must be a whole number of at least 1, got {self.dense_first!r}")
        if not isinstance(self.dense_last, int) or self.dense_last < 0:
            raise StackError(f"dense_last must be a whole number of at least 0, got {self.dense_last!r}")

    @property
    def policy(self) -> SparsityPolicy:
        """The decisions this pass makes, as pure functions."""
        ends = (self.dense_first, self.dense_last)
        return SparsityPolicy(self.keep, self.block, *ends, self.even_if_slower, self.anchor_keep, self.reuse_maps)

    def options(self) -> dict[str, Any]:
        """The arguments that make an equal pass, those at their defaults left out."""
        return field_options(self)

    def describe(self, facts: Facts) -> list[str]:
        first = self.policy.first_steps(facts.steps)
        sparse = self.policy.sparse_steps(facts.steps)
        return [
            f"keeps {100 * self.keep:g} % of the image key blocks per query block and head, chosen by pooled scores",
            f"{sparse} of {facts.steps} steps sparse: the first {first} and the last {self.dense_last} stay dense",
            _shapes(self.policy, facts),
            *self._anchors(facts),
        ]

    def _anchors(self, facts: Facts) -> list[str]:
        """What full steps do differently."""
        lines = []
        if self.anchor_keep is not None:
            lines.append(f"full steps keep {100 * self.anchor_keep:g} %")
        if self.reuse_maps:
            share = f", {SAMPLED / (2 * facts.tokens):.1%} of dense attention" if facts.tokens else ""
            lines.append(
                f"maps made on full steps (without a cache, every {EVERY} steps) and reused while they drop at most "
                f"{self.reuse_maps:g} more, estimated on {SAMPLED} queries per head{share}"
            )
        return lines

    def check(self, facts: Facts) -> list[Finding]:
        if facts.family not in FAMILIES:
            what = f"no block-sparse attention for family {facts.family!r}"
            return [Finding(self.stage, what, f"only {', '.join(FAMILIES)} attention is wired", repair=DENSE)]
        if not self.policy.sparse_steps(facts.steps):
            first = self.policy.first_steps(facts.steps)
            what = f"0 of {facts.steps} steps would be sparse: first {first} and last {self.dense_last} are dense"
            return [Finding.of(NO_STEP_LEFT_SPARSE, self.stage, what, repair=DENSE)]
        if self.keep == 1:
            return [Finding(self.stage, "0 blocks would be dropped", "keep 1 keeps every block", repair=DENSE)]
        if not facts.image_tokens:
            what = "number of image tokens unknown before the first call"
            note = Finding(self.stage, what, "each call is decided by its own shape", note=True)
            return [note, *self._few_dense(facts)]
        if reason := self._dense_shape(facts):
            what = f"attention would not get faster: {reason}"
            return [Finding.of(SPARSE_DOES_NOT_PAY, self.stage, what, repair=DENSE)]
        return self._few_dense(facts)

    def _few_dense(self, facts: Facts) -> list[Finding]:
        """More dense steps where each carries more of the picture."""
        dense = self.policy.first_steps(facts.steps) + self.dense_last
        wanted = math.ceil(FEWEST_DENSE * facts.steps)
        if not facts.distilled or dense >= wanted:
            return []
        more = replace(self, dense_first=wanted - self.dense_last)
        what = f"{dense} of {facts.steps} steps of {facts.distilled} are dense"
        return [Finding.of(FEW_DENSE_STEPS, self.stage, what, repair=f"{wanted} are", replacement=more)]

    def facts_after(self, facts: Facts) -> Facts:
        """`attention_density` becomes the mean over the planned steps, dense ones included.

        Whether a cache comes above is not known here, so full steps are those there would be without one.
        """
        policy, steps = self.policy, facts.steps
        sparse, anchors = policy.sparse_steps(steps), policy.anchors(steps)
        saved = anchors * (1 - self._density(facts, True)) + (sparse - anchors) * (1 - self._density(facts, False))
        ends = (policy.first_steps(steps), steps - policy.last) if saved else ()
        switches = (*facts.switches, *(step / steps for step in ends if step < steps))
        return replace(facts, attention_density=facts.attention_density * (1 - saved / steps), switches=switches)

    def _density(self, facts: Facts, anchor: bool) -> float:
        """Share of the scores that a sparse step computes."""
        if not facts.image_tokens:
            return self.policy.kept(anchor)
        grid = self.policy.grid(facts.image_tokens, facts.text_tokens, facts.machine.device)
        return 1.0 if self._dense_shape(facts, anchor) else grid.density(self.policy.kept(anchor))

    def apply(self, target: Target, install: Installer) -> Applied:
        # diffusers is wanted only once a model is there.
        from ..models.attention import FAMILIES as READINGS
        from .flex import Flex
        from .processor import BlockSparseProcessor, Shared, TextLength

        tally, text, flex, family = Tally(target.clock), TextLength(), Flex(), READINGS[target.wiring.family]
        maps = Maps(self.policy, target.clock, tally, target.conditions)
        layers = _attention_layers(target)
        plain = [attention for attention in layers if family.is_plain(attention)]
        if plain and family.joins_text:
            install.wrap_call(target.denoiser, "forward", partial(text.recording, target.denoiser))
        shared = Shared(family, self.policy, tally, maps, text, flex)
        for number, attention in enumerate(plain):
            install.set_processor(attention, BlockSparseProcessor(attention.processor, number, shared))
        clock = target.clock
        install.set_attribute(
            clock, "compute_modes", (*clock.compute_modes, lambda tick: bool(self.policy.dense_step(tick)))
        )
        install.on_rollback(maps.reset)
        return Applied(
            summary=f"{len(plain)} of {len(layers)} attention layers, keeps {100 * self.keep:g} %: "
            + _shapes(self.policy, target.facts),
            report=_reporter(self, tally, maps, flex, target),
            reset=maps.reset,
            details={"tally": tally, "maps": maps},
            warnings=_left_alone(layers, plain),
        )

    def _dense_shape(self, facts: Facts, anchor: bool = False) -> str:
        device = facts.machine.device
        return self.policy.dense_shape(
            facts.image_tokens, facts.text_tokens, facts.heads, facts.head_dim, device, anchor
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shapes(policy: SparsityPolicy, facts: Facts) -> str:
    """What the cost rule says of a model, in one line."""
    if not facts.image_tokens:
        return "tokens unknown: each call is decided by its own shape"
    device = facts.machine.device
    reason = policy.dense_shape(facts.image_tokens, facts.text_tokens, facts.heads, facts.head_dim, device)
    if reason:
        return f"{DENSE}: {reason}"
    grid = policy.grid(facts.image_tokens, facts.text_tokens, device)
    lengths = f"{grid.rows} query blocks of {grid.group * grid.key} by {grid.blocks} key blocks of {grid.key}"
    return f"{lengths}: density {grid.density(policy.keep):.2f} on sparse steps"


def _attention_layers(target: Target) -> list[Any]:
    from diffusers.models.attention import AttentionModuleMixin
    from diffusers.models.attention_processor import Attention

    blocks = [block for _, block in target.wiring.blocks(target.denoiser)]
    return [m for block in blocks for m in block.modules() if isinstance(m, (Attention, AttentionModuleMixin))]


def _left_alone(layers: Sequence[Any], plain: Sequence[Any]) -> list[str]:
    """What processors that somebody else chose mean for sparse calls."""
    others = [type(a.processor).__name__ for a in layers if a not in plain]
    chosen = (vars(a.processor).get("_attention_backend") for a in plain)  # not every processor has one
    backends = {str(backend) for backend in chosen if backend is not None}
    told = (
        [f"{len(others)} of {len(layers)} layers stay dense, they have {', '.join(sorted(set(others)))}"]
        if others
        else []
    )
    told += [f"sparse calls do not use {', '.join(sorted(backends))}, dense ones do"] if backends else []
    return [OTHER_PROCESSORS.annotate(text) for text in told]


def _reporter(
    wanted: SparseAttention, tally: Tally, maps: Maps, flex: Flex, target: Target
) -> Callable[[], dict[str, Any]]:
    def report() -> dict[str, Any]:
        only_full = wanted.anchor_keep is not None and 0 < tally.sparse == tally.anchors
        if only_full:
            target.journal.warn(f"keep={wanted.keep:g} was never used: every sparse call was on a full step")
        if target.journal.entries and not tally.sparse:
            reasons = ", ".join(f"{count} {why}" for why, count in tally.dense.items()) or "no attention ran"
            target.journal.warn(f"0 of {tally.calls} attention calls sparse: {reasons}")
        if flex.compiled > flex.most:
            target.journal.warn(
                f"attention was compiled {flex.compiled} times, only {flex.most} shapes are kept: use fewer sizes"
            )
        return {"bytes": maps.bytes, **tally.figures()}

    return report
