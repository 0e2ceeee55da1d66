"""Dense attention by the fastest exact kernel as a pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..core.errors import choose
from ..core.facts import Facts
from ..core.installer import Installer
from ..core.passes import Applied, Finding, field_options
from ..core.validate import check_fields
from ..runtime.target import Target
from .dense_kernels import AUTO, KERNELS, TORCH, DenseKernel, chosen, dtype_of
from .tally import Tally

LEFT = "torch's own attention stays"


@dataclass(frozen=True)
class DenseAttention:
    """Exact attention by a faster kernel than torch's choice, for the calls that no other pass computes.

    It rounds differently, as another kernel of the same precision does, and leaves nothing out. Calls with a mask that
    hides something are computed by torch as without the pass, and counted by reason.

    Attributes:
        backend: "auto" takes for each call what is fastest at its length and head size, by measured figures; "products"
            (CPUs with AVX-512 BF16, bf16), "cudnn" (CUDA) or "torch" one of them for all.
    """

    backend: str = AUTO
    stage: ClassVar[str] = "dense_attn"

    def __post_init__(self) -> None:
        check_fields(self, self.stage)
        if self.backend not in (known := (AUTO, TORCH, *KERNELS)):
            raise choose("kernel of dense attention", self.backend, known)

    def options(self) -> dict[str, Any]:
        """The arguments that make an equal pass, those at their defaults left out."""
        return field_options(self)

    def describe(self, facts: Facts) -> list[str]:
        kernel = KERNELS.get(self.backend) or self._kernel(facts)
        if kernel is None:
            return [LEFT if facts.image_tokens or self.backend == TORCH else "each call is decided by its own shape"]
        gain = kernel.speedup(facts.tokens, facts.head_dim)
        timed = f"{gain:.1f}x as fast as torch's attention" if gain else "slower than torch's attention or not measured"
        where = f"at {facts.tokens:,} tokens and heads of {facts.head_dim}, {kernel.source}"
        return [
            f"{kernel.name}: {kernel.does}",
            f"time: {timed} {where}" if facts.image_tokens else "time: the number of tokens decides, which is unknown",
            "error: the rounding of its products; nothing is left out",
        ]

    def check(self, facts: Facts) -> list[Finding]:
        if reason := facts.lacks.get("attention"):
            return [Finding(self.stage, f"no other kernel: {reason}", repair=LEFT)]
        lacking = {name: _lacks(kernel, facts) for name, kernel in KERNELS.items()}
        if self.backend in KERNELS and (reason := lacking[self.backend]):
            return [Finding(self.stage, f"{self.backend} cannot compute this model", reason, repair=LEFT)]
        if self.backend == AUTO and all(lacking.values()):
            reasons = "; ".join(f"{name}: {reason}" for name, reason in lacking.items())
            return [Finding(self.stage, "no kernel is faster than torch's choice here", reasons, repair=LEFT)]
        if self.backend == AUTO and facts.image_tokens and self._kernel(facts) is None:
            shape = f"{facts.tokens:,} tokens, heads of {facts.head_dim}"
            return [Finding(self.stage, f"no kernel is faster than torch's choice: {shape}", repair=LEFT)]
        return []

    def facts_after(self, facts: Facts) -> Facts:
        return replace(facts, dense_attention=self.backend)

    def apply(self, target: Target, install: Installer) -> Applied:
        if self.backend == TORCH:
            return Applied(f"{LEFT}, as asked for")
        # diffusers is wanted only once a model is there.
        from .dense_backend import Dense
        from .layers import applied

        tally = Tally(target.clock)
        dense = Dense(self.backend, target.facts.machine, tally)
        return applied(target, install, dense, tally, _reporter(tally, target), last=True)

    def _kernel(self, facts: Facts) -> DenseKernel | None:
        """What computes a call of this model's usual length."""
        return chosen(self.backend, facts.machine, dtype_of(facts), facts.tokens, facts.head_dim)


def _lacks(kernel: DenseKernel, facts: Facts) -> str:
    """Why a kernel cannot compute a model, or ""."""
    if reason := kernel.lacks(facts.machine, dtype_of(facts)):
        return reason
    taken = kernel.heads
    known = not facts.head_dim or facts.head_dim in taken
    return "" if known else f"expected heads of {taken[0]}, {taken[1]}, ... {taken[-1]}, got {facts.head_dim}"


def _reporter(tally: Tally, target: Target) -> Callable[[], dict[str, Any]]:
    def report() -> dict[str, Any]:
        # None at all where other passes took every call.
        if target.contexts and tally.left and not tally.taken:
            reasons = ", ".join(f"{count} {why}" for why, count in tally.left.items())
            target.journal.warn(f"0 attention calls by another kernel than torch's: {reasons}")
        return {"dense_calls": tally.taken, "other_calls": dict(tally.left)}

    return report
