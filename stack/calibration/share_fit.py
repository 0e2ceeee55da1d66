"""Shares of blocks by layer and third of the schedule: what a budget of sparse attention comes to on real prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from ..attention.sparse_attn import SparseAttention, Thirds
from ..attention.sparsity import SparsityPolicy, third
from ..compat.calibrated_for import conditions
from ..core.errors import StackError
from ..core.progress import ProgressLine
from ..core.validate import Seed, checked, some_prompts
from ..runtime.call_arguments import Call
from ..runtime.pipeline_calls import PipelineCalls
from ..runtime.stack_like import AnyStack, StackLike
from .quant.recording import taken_off

NOT_RUN = ("compile", "cache")  # stages that change neither queries and keys nor what a budget makes of them


def fit_shares(
    stack: AnyStack, prompts: Sequence[str], seed: int = 0, progress: bool = True, call: Call | None = None
) -> AnyStack:
    """Measure which share of the blocks each layer keeps under the budget of `sparse_attn(max_error=...)` or
    `sparse_attn(max_mass=...)`, and put these shares into the pass: means over the steps of each third of the schedule.

    Calls then measure no error any more, and a plan knows what is saved.

    Args:
        prompts: one or more, each run once without a cache, prompt i with the seed `seed` + i.
        progress: one line on stderr; Ctrl-C leaves the stack as it was.
        call: further arguments of every call, see `stack.runtime.pipeline_calls.PipelineCalls`.

    Raises:
        StackError: no budget in the stack, no pipeline, no prompts, or no call of attention that could be sparse. The
            stack is left as it was.
    """
    sparse = next((p for p in stack.passes if isinstance(p, SparseAttention)), None)
    if sparse is None or stack.pipe is None or (sparse.max_error is None and sparse.max_mass is None):
        got = "a bare denoiser" if stack.pipe is None else "no budget" if sparse else "no sparse_attn()"
        raise StackError(f"expected a pipeline with .sparse_attn(max_error=...) or (max_mass=...), got {got}")
    texts, calls = some_prompts(prompts), PipelineCalls(stack.pipe, call)
    checked(Seed, seed, "seed")
    # Also where this machine would stay dense: what a layer loses is no matter of the machine.
    measuring = replace(sparse, layers=None, calibrated_for=(), even_if_slower=True)
    passes = [measuring if p is sparse else p for p in stack.passes if p.stage not in NOT_RUN]
    with stack.lock, ProgressLine("fit_shares", progress) as bar:
        with taken_off(stack), stack.beside(passes) as other:
            kept = _kept(other, measuring.policy, texts, seed, calls, bar)
            if not kept:
                why = "; ".join([str(finding) for finding in other.plan.findings] or other.report().warnings)
                raise StackError(f"no shares to fit: expected calls of sparse attention, got none ({why})")
            stamp = conditions(other.plan.facts_after)
        stack.replace(replace(sparse, layers=thirds(kept), calibrated_for=stamp))
    return stack


def thirds(kept: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Thirds]:
    """The mean share of each third, by layer, to three digits; 1, which is dense, where nothing was measured."""

    def mean(part: Sequence[float]) -> float:
        return round(fmean(part), 3) if part else 1.0

    return {layer: (mean(first), mean(middle), mean(last)) for layer, (first, middle, last) in kept.items()}


def _kept(
    other: StackLike, policy: SparsityPolicy, prompts: Sequence[Any], seed: int, calls: PipelineCalls, bar: ProgressLine
) -> dict[str, tuple[list[float], ...]]:
    """The shares of all sparse steps, by layer and third."""
    found: dict[str, tuple[list[float], ...]] = {}
    facts = other.plan.facts_after
    for _ in calls.per_prompt(other, prompts, seed, facts.asked, bar, "measuring prompt"):
        for layer, figures in other.report().passes.get(SparseAttention.stage, {}).get("by_layer", {}).items():
            shares = figures["kept"]
            for step in range(policy.first_steps(facts.steps), len(shares) - policy.last):
                if shares[step] is not None:
                    found.setdefault(layer, ([], [], []))[third(step, facts.steps)].append(shares[step])
    return found
