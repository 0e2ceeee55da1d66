"""Rounding with error feedback: records what linears are given in real requests, and rounds their weights by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..core.errors import StackError
from ..core.progress import ProgressLine, counted
from ..core.validate import Seed, checked, some_prompts
from ..quant.quantize import Quantize
from ..quant.rounding.calibrated import FeedbackRounding, InputMoments, rounded_with_feedback
from ..runtime.call_arguments import Call
from ..runtime.stack_like import AnyStack, StackLike
from .quant.recording import Recorded, below_quantization, record_calls, taken_off

BUDGET = 1 << 30  # bytes of second moments that are held at a time


@dataclass
class MomentSums:
    """Of one linear's inputs, summed up call by call.

    Attributes:
        second: (K, K), the sum of x x^T.
        total: (K,), the sum of x.
    """

    second: torch.Tensor | float = 0.0
    total: torch.Tensor | float = 0.0
    count: int = 0

    def add(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A forward pre-hook: takes in one call's input (B, ..., K)."""
        x = args[0].detach().flatten(0, -2).float()
        self.second, self.total, self.count = self.second + x.T @ x, self.total + x.sum(0), self.count + len(x)

    def moments(self) -> InputMoments:
        """Their means."""
        assert isinstance(self.second, torch.Tensor) and isinstance(self.total, torch.Tensor), "no call came by"
        return InputMoments(self.second / self.count, self.total / self.count)


def fit_rounding(
    stack: AnyStack,
    prompts: Sequence[str],
    seed: int = 0,
    steps: int = 6,
    progress: bool = True,
    call: Call | None = None,
) -> AnyStack:
    """Round the 4-bit linears of the quantize pass with error feedback, and put them into the pass.

    Second moments take 4 K^2 bytes per linear of K input features; linears are measured in portions of 1 GiB.

    Args:
        prompts: of one recorded request; a dozen or more for a rounding that holds on others.
        seed: of the first prompt, the next one has the next.
        steps: recorded ones, evenly spread over the schedule.
        progress: one line on stderr; Ctrl-C leaves the stack as it was.
        call: further arguments of the request, see `stack.runtime.pipeline_calls.PipelineCalls`.

    Raises:
        StackError: no `quantize(feedback=True)` in the stack, no pipeline, or no prompts. The stack is left as it was.
    """
    quantize = next((p for p in stack.passes if isinstance(p, Quantize)), None)
    if quantize is None or not quantize.feedback:
        got = "quantize() without it" if quantize else "no quantize()"
        raise StackError(f"expected a stack with .quantize('nf4', feedback=True), got {got}")
    prompts = some_prompts(prompts)
    checked(Seed, seed, "seed")
    with stack.lock, taken_off(stack), ProgressLine("fit_rounding", progress) as bar:
        bar.says("recording")
        calls = record_calls(stack, prompts, seed, steps, call)
        with stack.beside(below_quantization(stack)) as below:
            rounded = _rounded(below, quantize, calls, bar)
            facts = below.plan.facts_after
        source = f"{counted(len(prompts), 'prompt')} from seed {seed}, {counted(steps, 'step')} of each"
        stack.replace(
            replace(quantize, rounded=FeedbackRounding(rounded, facts.adapters, facts.machine.device, source))
        )
    return stack


@torch.no_grad()
def _rounded(stack: StackLike, quantize: Quantize, calls: Sequence[Recorded], bar: ProgressLine) -> dict[str, Any]:
    choices = quantize.choices(stack.denoiser, stack.wiring, stack.facts)
    schemes = {c.path: c.scheme for c in choices if c.kept is None and c.scheme.weight_bits == 4}
    linears = {path: stack.denoiser.get_submodule(path) for path in schemes}
    plain = {path: linear for path, linear in linears.items() if isinstance(linear, nn.Linear)}
    found: dict[str, Any] = {}
    portions = list(in_portions(plain, BUDGET))
    for portion in bar.track(portions, "rounding portion"):
        with listening({path: plain[path] for path in portion}) as sums:
            for call in calls:
                call.run(stack)
        for path in portion:
            found[path] = rounded_with_feedback(plain[path], schemes[path], sums.pop(path).moments())
    return found


@contextmanager
def listening(linears: Mapping[str, nn.Module]) -> Iterator[dict[str, MomentSums]]:
    """Sums of what these linears are given inside the `with`."""
    found = {path: MomentSums() for path in linears}
    handles = [linear.register_forward_pre_hook(found[path].add) for path, linear in linears.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def in_portions(linears: Mapping[str, nn.Linear], budget: int) -> Iterator[list[str]]:
    """Paths in portions whose moments take at most `budget` bytes together; one of its own where one is larger."""
    portion: list[str] = []
    size = 0
    for path, linear in linears.items():
        own = 4 * linear.in_features**2
        if portion and size + own > budget:
            yield portion
            portion, size = [], 0
        portion.append(path)
        size += own
    if portion:
        yield portion
