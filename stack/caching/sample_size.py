"""Tells error budgets how large the sample is that their errors are relative to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..models.sampler import AffineStep
from ..runtime.call import DenoiserCall, Proceed
from .controller import CacheController
from .gates import BudgetGate
from .latent import x0_of


class SampleSize:
    """Measures the size of the x0 estimate, x0 = c x + d m, on every step that runs in full.

    One number per sample is read back, where the budget reads its forecast's error anyhow.

    Args:
        steps: the sampler's steps of the current request.
    """

    def __init__(self, controller: CacheController, steps: Callable[[], list[AffineStep]]):
        self.controller, self.steps = controller, steps

    def intercept(self, call: DenoiserCall, proceed: Proceed) -> Any:
        result = proceed(call)
        budgets = {
            row: slot.gate.budget
            for row, slot in enumerate(self.controller.slots)
            if isinstance(slot.gate, BudgetGate) and not slot.run
        }
        if budgets and self.controller.now.known:
            step = self.steps()[self.controller.now.step]
            x0 = x0_of(step, call.latent.float(), result[0].float())
            sizes = torch.linalg.vector_norm(x0.flatten(1), dim=1) / x0[0].numel() ** 0.5
            for budget, size in zip(budgets.values(), sizes[list(budgets)].tolist(), strict=True):
                budget.resize(size)
        return result
