"""SageAttention as a pass: the scores of dense attention from queries and keys in int8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..compat.rules.sage import ENDS_IN_EIGHT_BITS, SAGE_ON_ROUNDED_LINEARS
from ..core.facts import Facts
from ..core.installer import Installer
from ..core.passes import Applied, Finding, field_options
from ..core.validate import check_fields
from ..quant.backends.libraries import importable
from ..runtime.target import Target
from .cost import SAGE_COST
from .outlook import DENSE
from .sage import BITS, DTYPES, unfit_size
from .tally import Tally


@dataclass(frozen=True)
class SageAttention:
    """SageAttention 1 (Zhang et al. 2024, arXiv 2410.02367), by the kernel of the package `sageattention`.

    Every call of attention over the latent's tokens that the kernel can take, of those that sparse attention leaves
    dense. Other calls are computed by torch as without the pass, and counted by reason.

    Attributes:
        even_if_slower: on a machine without the kernel compute the same in plain torch, to measure what it costs of the
            picture.
    """

    even_if_slower: bool = False
    stage: ClassVar[str] = "sage_attn"

    def __post_init__(self) -> None:
        check_fields(self, self.stage)

    def options(self) -> dict[str, Any]:
        """The arguments that make an equal pass, those at their defaults left out."""
        return field_options(self)

    def describe(self, facts: Facts) -> list[str]:
        kernel = not _no_kernel(facts)
        return [
            f"scores from queries and keys in int{BITS}, softmax weights times values in fp16 (SageAttention 1)",
            f"time: {SAGE_COST}" if kernel else "computed in plain torch, slower than dense attention",
            "error: about 1.3 % of an output where queries, keys and values are normal (root mean square)",
        ]

    def check(self, facts: Facts) -> list[Finding]:
        if reason := self._dense(facts):
            return [Finding(self.stage, f"no 8-bit attention: {reason}", repair=DENSE)]
        found = []
        if not facts.image_tokens:
            what = "number of image tokens unknown before the first call"
            found.append(Finding(self.stage, what, "each call is decided by its own shape", note=True))
        if facts.rounds_activations:
            what = f"queries and keys come from linears of {facts.activation_bits} bits, and are rounded again"
            found.append(Finding.of(SAGE_ON_ROUNDED_LINEARS, self.stage, what, note=True))
        if facts.switches:
            what = "the steps that quantize computes more precisely have 8-bit attention too"
            found.append(Finding.of(ENDS_IN_EIGHT_BITS, self.stage, what, note=True))
        return found

    def facts_after(self, facts: Facts) -> Facts:
        return replace(facts, attention_bits=BITS)

    def apply(self, target: Target, install: Installer) -> Applied:
        # diffusers is wanted only once a model is there.
        from .eight_bit import EightBit
        from .layers import applied

        tally = Tally(target.clock)
        return applied(target, install, EightBit(tally), tally, _reporter(tally, target))

    def _dense(self, facts: Facts) -> str:
        """Why no call of this model would be computed, or ""."""
        if reason := facts.lacks.get("attention"):
            return reason
        if not self.even_if_slower and (reason := _no_kernel(facts)):
            return reason
        taken = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
        if facts.dtype not in taken:
            return f"expected a model in {' or '.join(taken)}, got {facts.dtype}"
        return unfit_size(facts.tokens, facts.head_dim) if facts.image_tokens and facts.head_dim else ""


def _no_kernel(facts: Facts) -> str:
    """Why there is no kernel on this machine, or ""."""
    if facts.machine.device != "cuda":
        return f"its kernel is for CUDA, the model is on {facts.machine.device}"
    there = importable("sageattention") and importable("triton")
    return "" if there else "the package is missing: pip install 'ditstack[sage]'"


def _reporter(tally: Tally, target: Target) -> Callable[[], dict[str, Any]]:
    def report() -> dict[str, Any]:
        if target.contexts and not tally.taken:
            reasons = ", ".join(f"{count} {why}" for why, count in tally.left.items()) or "none got that far"
            target.journal.warn(f"0 attention calls in 8 bits: {reasons}")
        return {"sage_calls": tally.taken, "other_calls": dict(tally.left)}

    return report
