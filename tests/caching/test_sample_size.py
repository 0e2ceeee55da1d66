"""The sample's size that an error budget is relative to, against the latents of the run itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stack import Stack
from stack.compat.budget import SMALLEST, ErrorBudget

from ..conftest import PROMPT, tiny_pipe

STEPS = 14


def run(prompts: list[str], scale: float = 1.0) -> tuple[list[list[float]], list[torch.Tensor], list[str]]:
    """Sizes after each step and sample, the clean sample read off each output by hand, and what each step was.

    A flow's x = (1 - sigma) x0 + sigma n and velocity n - x0, so that x0 = x - sigma v.
    """
    pipe = tiny_pipe()
    stack = Stack(pipe, steps=STEPS).cache("svd", max_error=0.2).apply()
    controller = stack._layers[-1].applied.details["controller"]
    made = stack.denoiser.forward
    sizes: list[list[float]] = []
    clean: list[torch.Tensor] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        out = made(*args, **kwargs)
        latent, sigma = kwargs["hidden_states"], stack._target.clock.context.sigma
        clean.append(latent - sigma * out[0])
        budgets: list[ErrorBudget] = [slot.gate.budget for slot in controller.slots]
        sizes.append([budget.size for budget in budgets])
        return out

    stack.denoiser.forward = watched
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    latents = scale * torch.randn(len(prompts), 64, 12, generator=torch.Generator().manual_seed(5))
    stack(prompts, num_inference_steps=STEPS, generator=generators, latents=latents, output_type="latent")
    kinds = [record.kind for record in stack.report().steps]
    return sizes, clean, kinds


def test_full_steps_tell_the_size_of_each_sample_and_cached_ones_leave_it() -> None:
    sizes, clean, kinds = run([PROMPT, "a blue star"])
    assert {"full", "cached"} <= {*kinds}
    for step, kind in enumerate(kinds):
        expected = clean[step].flatten(1).square().mean(1).sqrt().tolist() if kind == "full" else sizes[step - 1]
        assert sizes[step] == pytest.approx(expected, rel=1e-4)
    assert sizes[0][0] != pytest.approx(sizes[0][1], rel=1e-3), "each sample has a size of its own"


def test_an_empty_sample_is_no_reason_to_cache_nothing() -> None:
    budget = ErrorBudget(0.1, [1.0, 0.5], [0.5, 0.5], order=0)
    budget.resize(0.0)
    assert budget.size == SMALLEST == 0.05
