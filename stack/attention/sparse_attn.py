"""Block-sparse attention: each block of image queries attends to the text and to the best-matching key blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ..compat.calibrated_for import DECISIVE, differences
from ..compat.rules.compilers import SPLIT_TOKENS
from ..compat.rules.sage import ENDS_IN_EIGHT_BITS
from ..compat.rules.sparse import (
    FEW_DENSE_STEPS,
    FEWEST_DENSE,
    NO_STEP_LEFT_SPARSE,
    SHARES_FITTED_ELSEWHERE,
    SLOW_DENSE_CALLS,
    SPARSE_DOES_NOT_PAY,
)
from ..core.errors import StackError, choose
from ..core.facts import Facts, Machine
from ..core.installer import Installer
from ..core.passes import Applied, Finding, field_options
from ..core.validate import Share, Steps, check_fields, shown
from ..models.preexisting import PARALLEL
from ..quant.backends.libraries import importable
from ..runtime.target import Target
from .dense_attn import DenseAttention
from .dense_kernels import AUTO as KERNEL_BY_SHAPE
from .dense_kernels import TORCH, chosen, dtype_of
from .maps import FINEST
from .outlook import DENSE, by_layer, density_of, error_words, order_words, shapes, why_dense
from .producers import MEASURED, PRODUCERS
from .sparge import MODULE, unfit_machine
from .sparsity import DEVICES_OWN, SPARGE, SparsityPolicy
from .tally import Tally
from .token_order import AUTO, BY_HEAD, ORDERS, RASTER

if TYPE_CHECKING:
    from .flex import Flex

Thirds = tuple[Share, Share, Share]
Table = tuple[tuple[str, Thirds], ...]
# What may be asked for instead of a share of the blocks, and what it is.
BUDGETS = {"max_mass": "the share of the mass left out", "max_error": "the relative error of attention's outputs"}


@dataclass(frozen=True)
class SparseAttention:
    """Training-free block-sparse attention.

    Text keys and a block's own neighbourhood are always kept, text queries attend to everything, and maps are chosen
    per sample and head. The first steps and the last one stay dense, and so does any call whose shapes a dense kernel
    handles faster.

    Attributes:
        keep: share of image key blocks that each query block attends to, in (0, 1]; 0.5 where no budget is given.
        max_mass: instead of `keep`, the share of the softmax mass that a query block and head may leave out, in (0, 1),
            measured on one query in 32. Each attends to the fewest blocks within it; calls in which these are too many
            to gain anything stay dense, where that can be read without waiting for the device.
        max_error: likewise, the error of attention's outputs: root mean square over the sampled queries of a query
            block and head, over that of all sampled outputs of the head. It bounds the error of these queries together;
            for the other 31 in 32 it is an estimate.
        layers: shares of key blocks by path of the layer, for each third of the schedule, that a budget came to on this
            model (`Stack.fit_shares`). They take its place, and nothing is measured in a call; layers that are not
            named are dense. A mapping, kept as sorted pairs.
        calibrated_for: of which stack the shares are, see `stack.compat.calibrated_for`. On another one they are left
            out, and the budget is measured again.
        producer: who says which blocks matter: "sampled" (queries, exactly), "pooled", "antidiagonal", "window"
            (nearest in the order of tokens) or "sliding_tile" (nearest in the picture or video).
        kernel: who computes by the map. "auto": matrix products or torch's kernel on gathered keys on a CPU,
            FlexAttention on CUDA. "sparge": SpargeAttn's kernel with 8-bit scores, not with `max_error`; see
            `stack.attention.sparge`.
        order: in which the latent's tokens are cut into blocks: "raster" as they lie, "transposed" (column by column,
            of videos place by place), "hilbert" (compact patches), or "by_head", which gives every head the one of
            these that serves it best, tried once in a request. "auto" is by head from 2,048 tokens and 8 sparse steps
            on, and raster below. Where their grid is not known tokens stay as they lie.
        block: query block in tokens, a multiple of 64; None takes the device's best (256 on a CPU, 128 on CUDA).
        dense_first: dense steps at the start; None is a tenth of the schedule, at least 1.
        dense_last: dense steps at the end.
        even_if_slower: skip the rule that keeps attention dense where sparsity would not pay; where not even one block
            could be dropped, query blocks are cut as short as they can be.
    """

    keep: float | None = None
    block: int | None = None
    dense_first: Steps | None = None
    dense_last: Steps = 1
    even_if_slower: bool = False
    max_mass: float | None = None
    max_error: float | None = None
    producer: str = MEASURED
    order: str = AUTO
    kernel: str = DEVICES_OWN
    layers: Table | Mapping[str, Thirds] | None = field(default=None, repr=False)
    calibrated_for: tuple[str, ...] = field(default=(), repr=False)
    stage: ClassVar[str] = "sparse_attn"

    def __post_init__(self) -> None:
        check_fields(self, self.stage)
        if self.producer not in PRODUCERS:
            raise choose("producer of block maps", self.producer, list(PRODUCERS))
        if self.kernel not in (DEVICES_OWN, SPARGE):
            raise choose("kernel of sparse attention", self.kernel, [DEVICES_OWN, SPARGE])
        if self.order not in (known := (AUTO, BY_HEAD, *ORDERS)):
            raise choose("order of tokens", self.order, known)
        self._check_amount()
        self._check_layers()
        if self.block is not None and (self.block < FINEST or self.block % FINEST):
            raise StackError(
                f"block must be a multiple of {FINEST} tokens, got {self.block!r}: try 256, or leave it out"
            )

    def _check_amount(self) -> None:
        asked = {name: vars(self)[name] for name in ("keep", *BUDGETS) if vars(self)[name] is not None}
        if len(asked) > 1:
            given = " and ".join(f"{name}={value!r}" for name, value in asked.items())
            raise StackError(f"{given}: expected one of them, leave {'one' if len(asked) == 2 else 'two'} out")
        for name in BUDGETS & asked.keys():
            if not 0 < asked[name] < 1:
                raise StackError(f"{name} must be in (0, 1), got {asked[name]!r}: it is {BUDGETS[name]}")
            if self.producer != MEASURED:
                raise StackError(f"{name} needs exact scores, got producer={self.producer!r}: take {MEASURED!r}")
        if self.max_error is not None and self.kernel == SPARGE:
            raise StackError(
                "max_error counts on the means of dropped blocks, which kernel='sparge' leaves out: take max_mass"
            )
        if not asked:
            object.__setattr__(self, "keep", 0.5)
        elif self.keep is not None and not 0 < self.keep <= 1:
            raise StackError(f"keep must be in (0, 1], got {self.keep!r}: it is the share of key blocks attended to")

    def _check_layers(self) -> None:
        if self.layers is None:
            return
        pairs = self.layers.items() if isinstance(self.layers, Mapping) else self.layers
        object.__setattr__(self, "layers", tuple(sorted(pairs)))
        for path, shares in self.table.items():
            if not all(0 < share <= 1 for share in shares):
                raise StackError(f"sparse_attn.layers: expected shares in (0, 1] for {path}, got {shown(shares)}")

    @property
    def table(self) -> dict[str, Thirds]:
        """The shares by path; empty where there are none."""
        return dict(self.layers or ())

    @property
    def policy(self) -> SparsityPolicy:
        """The decisions this pass makes, as pure functions."""
        amount = (self.keep or 0.0, self.block, self.dense_first, self.dense_last)
        budgets = (self.max_mass, self.max_error)
        return SparsityPolicy(
            *amount, self.even_if_slower, *budgets, self.producer, self.table or None, self.order, self.kernel
        )

    def options(self) -> dict[str, Any]:
        """The arguments that make an equal pass, those at their defaults left out."""
        lists = {"layers": {path: list(shares) for path, shares in self.table.items()}} if self.layers else {}
        stamp = {"calibrated_for": list(self.calibrated_for)} if self.calibrated_for else {}
        return {**field_options(self), **lists, **stamp}

    def describe(self, facts: Facts) -> list[str]:
        first = self.policy.first_steps(facts.steps)
        sparse = self.policy.sparse_steps(facts.steps)
        return [
            f"{self._amount()} of the image key blocks per query block and head, chosen by {self.producer} scores",
            f"{sparse} of {facts.steps} steps sparse: the first {first} and the last {self.dense_last} stay dense",
            shapes(self.policy, facts),
            *by_layer(self.policy, facts),
            error_words(self.policy),
            order_words(self.policy, facts),
        ]

    def _amount(self) -> str:
        if self.layers is not None:
            return "keeps, as fitted by layer and third of the schedule, a share"
        if self.max_mass is not None:
            return f"leaves out at most {100 * self.max_mass:g} % of the softmax mass: keeps the fewest"
        if self.max_error is not None:
            return f"outputs of sampled queries are off by at most {100 * self.max_error:g} %: keeps the fewest"
        return f"keeps {100 * self.policy.keep:g} %"

    def check(self, facts: Facts) -> list[Finding]:
        if reason := facts.lacks.get("attention"):
            what = f"no block-sparse attention for {facts.denoiser_class or facts.family}"
            return [Finding(self.stage, what, reason, repair=DENSE)]
        if PARALLEL in facts.carries:
            return [Finding.of(SPLIT_TOKENS, self.stage, f"the model carries {PARALLEL}", repair=DENSE)]
        if self.kernel == SPARGE and (reason := unfit_machine(*_sparge_facts(facts))):
            what, repair = "SpargeAttn's kernel cannot compute this model", "kernel='auto' does"
            return [Finding(self.stage, what, reason, repair=repair, replacement=replace(self, kernel=DEVICES_OWN))]
        if self.order not in (AUTO, BY_HEAD, RASTER) and (reason := facts.lacks.get("grid")):
            what = f"no {self.order} order of tokens whose grid is not known"
            plain = replace(self, order=RASTER)
            return [Finding(self.stage, what, reason, repair="they stay as they lie", replacement=plain)]
        if changed := differences(self.calibrated_for, facts, DECISIVE):
            what = f"the shares kept by layer were fitted on another stack: {'; '.join(changed)}"
            plain = replace(self, layers=None, calibrated_for=())
            repair = f"{plain._amount()} of the blocks; fit_shares() again"
            return [Finding.of(SHARES_FITTED_ELSEWHERE, self.stage, what, repair=repair, replacement=plain)]
        if not self.policy.sparse_steps(facts.steps):
            first = self.policy.first_steps(facts.steps)
            what = f"0 of {facts.steps} steps would be sparse: first {first} and last {self.dense_last} are dense"
            return [Finding.of(NO_STEP_LEFT_SPARSE, self.stage, what, repair=DENSE)]
        if self.keep == 1:
            return [Finding(self.stage, "0 blocks would be dropped", "keep 1 keeps every block", repair=DENSE)]
        if not facts.image_tokens:
            what = "number of image tokens unknown before the first call"
            note = Finding(self.stage, what, "each call is decided by its own shape", note=True)
            return [note, *self._ends(facts), *_dense_calls(facts, self.stage)]
        if reason := why_dense(self.policy, facts):
            what = f"attention would not get faster: {reason}"
            return [Finding.of(SPARSE_DOES_NOT_PAY, self.stage, what, repair=DENSE)]
        return [*self._ends(facts), *_dense_calls(facts, self.stage)]

    def _ends(self, facts: Facts) -> list[Finding]:
        """How the dense steps at both ends will be."""
        if facts.attention_bits == 16:
            return self._few_dense(facts)
        what = f"the dense steps at both ends have scores of {facts.attention_bits} bits"
        return [Finding.of(ENDS_IN_EIGHT_BITS, self.stage, what, note=True), *self._few_dense(facts)]

    def _few_dense(self, facts: Facts) -> list[Finding]:
        """More dense steps under a few-step adapter, where each step decides more of the picture."""
        dense = self.policy.first_steps(facts.steps) + self.dense_last
        wanted = math.ceil(FEWEST_DENSE * facts.steps)
        if not facts.distilled or dense >= wanted:
            return []
        more = replace(self, dense_first=wanted - self.dense_last)
        what = f"{dense} of {facts.steps} steps of {facts.distilled} are dense"
        return [Finding.of(FEW_DENSE_STEPS, self.stage, what, repair=f"{wanted} are", replacement=more)]

    def facts_after(self, facts: Facts) -> Facts:
        """`attention_density` becomes the mean over the planned steps, dense ones included.

        What a budget will leave out is not known before a run: no time is taken as saved.
        """
        policy, steps = self.policy, facts.steps
        density = density_of(policy, facts)
        saved = 0.0 if policy.budget else policy.sparse_steps(steps) * (1 - density)
        ends = (policy.first_steps(steps), steps - policy.last) if density < 1 and policy.sparse_steps(steps) else ()
        switches = (*facts.switches, *(step / steps for step in ends if step < steps))
        return replace(facts, attention_density=facts.attention_density * (1 - saved / steps), switches=switches)

    def apply(self, target: Target, install: Installer) -> Applied:
        # diffusers is wanted only once a model is there.
        from .block_sparse import BlockSparse
        from .flex import Flex
        from .head_orders import HeadOrders
        from .layers import applied

        tally, flex = Tally(target.clock), Flex()
        modes = (*target.compute_modes, lambda context: bool(self.policy.dense_step(context)))
        install.set_attribute(target, "compute_modes", modes)
        blocks = BlockSparse(self.policy, target.facts.machine, tally, flex, HeadOrders(target))
        what = f", {self._amount()}: {shapes(self.policy, target.facts)}"
        report, details = _reporter(tally, flex, target), {"flex": flex}
        return applied(target, install, blocks, tally, report, what=what, details=details)


def _sparge_facts(facts: Facts) -> tuple[Machine, int, torch.dtype, bool]:
    return facts.machine, facts.head_dim, dtype_of(facts), importable(MODULE)


def _dense_calls(facts: Facts, stage: str) -> list[Finding]:
    """The calls that stay dense deserve the fastest kernel too."""
    kernel = chosen(KERNEL_BY_SHAPE, facts.machine, dtype_of(facts), facts.tokens, facts.head_dim)
    if kernel is None:
        return []
    gain = kernel.speedup(facts.tokens, facts.head_dim)
    what = (
        f"dense calls by torch's kernel would take {gain:.1f} times as long as by {kernel.name}: dense_attn() is "
        "added, dense_attn('torch') leaves it out"
    )
    instead = DenseAttention(TORCH)
    return [Finding.of(SLOW_DENSE_CALLS, stage, what, note=True, adds=DenseAttention(), instead=instead)]


def _reporter(tally: Tally, flex: Flex, target: Target) -> Callable[[], dict[str, Any]]:
    def report() -> dict[str, Any]:
        if target.contexts and not tally.taken:
            reasons = ", ".join(f"{count} {why}" for why, count in tally.left.items()) or "no attention ran"
            target.journal.warn(f"0 of {tally.calls} attention calls sparse: {reasons}")
        if flex.compiled > flex.most:
            target.journal.warn(
                f"attention was compiled {flex.compiled} times, only {flex.most} shapes are kept: use fewer sizes"
            )
        return tally.figures()

    return report
