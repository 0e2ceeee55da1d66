"""Runs of a flow on Gaussian data, whose denoiser is known in closed form, under a schedule that measures itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from stack.caching.debts import Debts
from stack.caching.outlook import outlook, planned_levels
from stack.caching.spending import Spending
from stack.models.sampler import flow_form
from stack.models.schedule import uniform

MODES = 400


@dataclass
class Toy:
    """A sample of independent modes, each in units of its finished size.

    Attributes:
        bumps: what the estimates are off by in the first steps, as if the model were rough there.
    """

    seed: int
    log_variance: tuple[float, float] = (-3.0, 2.5)
    steps: int = 50
    bumps: float = 0.0
    full: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(self.seed)
        low, high = self.log_variance
        self.v = torch.exp(low + (high - low) * torch.rand(1, MODES, 1, generator=draw))
        self.noise = torch.randn(1, MODES, 1, generator=draw)
        self.rough = torch.randn(self.steps, 1, MODES, 1, generator=draw)

    def clean(self, x: torch.Tensor, step: int, sigma: float) -> torch.Tensor:
        """The estimate of the clean sample."""
        alpha = 1 - sigma
        rough = self.bumps * self.rough[step] if step < self.steps // 4 else 0.0
        return alpha * self.v / (alpha**2 * self.v + sigma**2) * x + rough

    def run(self, spending: Spending | None) -> torch.Tensor:
        """The finished sample; without a spending every step is full."""
        schedule, debts, known = uniform(self.steps), Debts(), []
        sampler, x = flow_form(schedule.sigmas), self.noise / self.v.sqrt()
        self.full = []
        for step, sigma in enumerate(schedule.sigmas):
            if spending is None or spending.due(step):
                self.full.append(step)
                x0 = self.clean(x, step, sigma)
                if spending:
                    takes = spending.ran(step)
                    off = debts.ran(step, x0, sampler, schedule.times, 1)
                    takes(float(off), float(x0.square().mean().sqrt()))
                known = [(schedule.times[step], x0), *known][:2]
            else:
                (at, x0), before = known[0], known[-1]
                slope = (x0 - before[1]) / (at - before[0]) if len(known) > 1 else torch.zeros_like(x0)
                x0 = debts.used[step] = x0 + slope * (schedule.times[step] - at)
            x0 = x0 + debts.owed.pop(step, torch.zeros(()))
            after = (*schedule.sigmas, 0.0)[step + 1]
            x = after / sigma * x + (1 - after / sigma) * x0
        return x


def spending(allowed: float, steps: int = 50) -> Spending:
    """For a flow without a shift."""
    levels, places = planned_levels(uniform(steps).levels)
    return Spending(allowed, outlook(levels, 1, True), places)


def error(toy: Toy, spent: Spending) -> float:
    """Of the finished sample, relative to it."""
    exact = toy.run(None)
    return float((toy.run(spent) - exact).norm() / exact.norm())
