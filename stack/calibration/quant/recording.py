"""Denoiser calls of real requests, written down once and made again on the model as other passes leave it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ...core.errors import StackError
from ...core.passes import Pass
from ...core.progress import counted
from ...core.validate import prompts_of
from ...distill.distill import Distill
from ...models.denoiser import one_denoiser
from ...runtime.call import DenoiserCall, some_rows
from ...runtime.call_arguments import Call
from ...runtime.pipeline_calls import PipelineCalls
from ...runtime.stack_like import StackLike
from ...runtime.step import StepContext
from ..observe import Observe, Run, answer_calls


@dataclass(frozen=True)
class Recorded:
    """One denoiser call.

    Attributes:
        given: its arguments by name; tensors are copies.
        context: where in its request it was.
        name: of the argument that is the noisy latent.
    """

    given: dict[str, Any]
    context: StepContext
    name: str = "hidden_states"

    @property
    def latent(self) -> torch.Tensor:
        """The noisy latent, batch first."""
        latent: torch.Tensor = self.given[self.name]
        return latent

    def at(self, latent: torch.Tensor) -> Recorded:
        """The same call on another latent."""
        return Recorded({**self.given, self.name: latent}, self.context, self.name)

    def only(self, rows: Sequence[int], names: Sequence[str]) -> Recorded:
        """The same call for these samples; `names` are the arguments with a leading batch dimension."""
        return Recorded(some_rows(self.given, rows, names, len(self.latent)), self.context, self.name)

    @torch.no_grad()
    def run(self, stack: StackLike) -> torch.Tensor:
        """The denoiser's output under a stack, at the step that the call was recorded at."""
        with stack.clock.replay(self.context):
            out: torch.Tensor = stack.denoiser(**{**self.given, "return_dict": False})[0]
            return out


def recording(steps: frozenset[int], calls: list[Recorded]) -> Observe:
    """Writes the calls of these steps down, all guidance branches of each."""

    def visit(call: DenoiserCall, run: Run, context: StepContext) -> Any:
        if context.step in steps:
            copied = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in call.given.items()}
            calls.append(Recorded(copied, context))
        return run(call)

    return Observe(lambda target, install: answer_calls(target, install, visit))


def evenly(count: int, of: int) -> frozenset[int]:
    """Indices of `count` of `of` steps, evenly spread, first and last among them."""
    count = min(count, of)
    return frozenset({0} if count == 1 else {round(i * (of - 1) / (count - 1)) for i in range(count)})


def below_quantization(stack: StackLike) -> list[Pass]:
    """The passes that quantization stands on: distilled adapters."""
    return [p for p in stack.passes if isinstance(p, Distill)]


@contextmanager
def taken_off(stack: StackLike) -> Iterator[None]:
    """The stack taken off its model inside the `with`, and applied again afterwards if it was."""
    applied = stack.applied
    stack.undo()
    try:
        yield
    finally:
        if applied:
            stack.apply()


def record_calls(
    stack: StackLike, prompts: Sequence[str], seed: int, steps: int, call: Call | None = None
) -> list[Recorded]:
    """Calls of one batched request on the model as it is below quantization, at `steps` evenly spread steps.

    Prompt i has the seed `seed` + i. The stack has to be off its model.

    Args:
        call: further arguments of the request, see `stack.runtime.pipeline_calls.PipelineCalls`.

    Raises:
        StackError: no pipeline, or one with two denoisers; no prompts, or no steps.
    """
    if stack.pipe is None:
        raise StackError("calls are recorded on pictures: expected Stack(pipeline), got a bare denoiser")
    one_denoiser(stack.pipe, "recording calls")
    prompts = prompts_of(prompts)
    if not prompts or steps < 1:
        raise StackError(f"expected at least 1 prompt and 1 step, got {counted(len(prompts), 'prompt')} and {steps}")
    passes = below_quantization(stack)
    total = next((p.steps for p in passes if isinstance(p, Distill) and p.steps), stack.facts.steps)
    calls: list[Recorded] = []
    with stack.beside([*passes, recording(evenly(steps, total), calls)]) as other:
        PipelineCalls(stack.pipe, call).make(other, prompts, seed, total, output="latent")
    return calls
