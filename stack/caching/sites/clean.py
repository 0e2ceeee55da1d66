"""The denoiser's estimate of the clean sample: forecast on cached steps, and put right on full ones.

Every output m of a denoiser stands for an estimate of the clean sample, x0 = c x + d m. It changes more slowly than the
output, and the latent x that a cached step starts from is known exactly: m = (x0 - c x) / d costs nothing, and an
error in x is partly taken back by the next step. This is data prediction, as in DPM-Solver++ (Lu et al. 2022,
arXiv:2211.01095), on the steps of the model's own schedule.

On the next full step the estimate is known at both ends of the cached ones. They are then taken again in thought, with
estimates on the straight line between the ends instead of the forecasts; by how much that would have moved x is added
to the full step's output. Solvers call it a corrector (UniPC, Zhao et al. 2023, arXiv:2302.04867). It needs no call of
the model, only a running sum of the forecasts that were used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...entrance import DenoiserCall, Entrance
from ...install import Installer
from ...models.sampler import AffineStep
from ...models.wiring import Wiring
from ..controller import CacheController, Cell
from .around import returned_as

CLEAN, USED = "clean", "used"  # key of x0, and of the running sum of its forecasts
Run = Callable[[DenoiserCall], Any]


class CleanSample:
    """Stands before the denoiser; nothing of the model runs on a cached step.

    Whole batches under a schedule only. Guidance branches each keep their own estimate: whatever affine combination of
    branches the pipeline makes of the outputs, it makes of their corrections too.

    Args:
        steps: the sampler's steps of the current request.
        corrected: whether full steps put right what the forecasts before them left.
    """

    def __init__(
        self,
        controller: CacheController,
        entrance: Entrance,
        steps: Callable[[], list[AffineStep]],
        corrected: bool = True,
    ):
        self.controller, self.entrance, self.steps, self.corrected = controller, entrance, steps, corrected
        self._segment: dict[str, list[tuple[int, float]]] = {}  # cached steps since the last full one, by branch

    def install(self, denoiser: nn.Module, wiring: Wiring, install: Installer) -> int:
        """Stand before the denoiser; returns 1, the number of places."""
        install.wrap_call(self.entrance, "run", lambda inner: lambda call: self._visit(call, inner))
        return 1

    def _visit(self, call: DenoiserCall, run: Run) -> Any:
        controller, latent = self.controller, call.latent
        controller.begin(latent)
        step = self.steps()[controller.now.step]
        (cell,) = controller.cells
        x = latent.float()
        if all(controller.decide()):
            clean = controller.predict(CLEAN, [cell])
            self._note(cell, step, clean)
            return returned_as(call, ((like(clean, x) - step.c * x) / step.d).to(latent.dtype))
        result = run(call)
        out = result[0].float()
        clean = tokens_of(step.c * x + step.d * out)
        moved = self._missed(cell, clean)
        # The latent is exact: all noise of the estimate is d times that of the output.
        louder = float(abs(step.d) * out.norm() / clean.norm()) if controller.noise else 1.0
        controller.store(CLEAN, clean, [cell], louder=louder)
        if moved is None:
            return result
        # The sampler starts its step from x, not from x + moved: the output makes up for both.
        out = out + (step.keeps / step.b) * like(moved, x)
        return returned_as(call, out.to(result[0].dtype))

    def _note(self, cell: Cell, step: AffineStep, clean: torch.Tensor) -> None:
        """A forecast was used."""
        if self.corrected:
            sum_so_far = cell.kept.get(USED)
            added = step.adds * clean
            cell.kept[USED] = added if sum_so_far is None else step.keeps * sum_so_far + added
            self._segment.setdefault(self.controller.now.branch, []).append(
                (self.controller.now.step, self.controller.x)
            )

    def _missed(self, cell: Cell, clean: torch.Tensor) -> torch.Tensor | None:
        """How far the cached steps just behind should have taken x elsewhere, (B, N, C); None where there were none."""
        used, segment = cell.kept.pop(USED, None), self._segment.pop(self.controller.now.branch, [])
        if used is None:
            return None
        before = cell.predictors[CLEAN]
        early, late = between(self.steps(), segment, before.newest, self.controller.x)
        return early * before.last.float() + late * clean - used


def between(steps: list[AffineStep], segment: list[tuple[int, float]], start: float, end: float) -> tuple[float, float]:
    """Weights of the estimates at both ends of a run of cached steps in the x behind it, going straight between them.

    Args:
        segment: (step, coordinate) of each cached step, in order.
        start, end: coordinates of the full steps before and behind.
    """
    early = late = 0.0
    for number, at in segment:
        share = (at - start) / (end - start)
        step = steps[number]
        early = step.keeps * early + step.adds * (1 - share)
        late = step.keeps * late + step.adds * share
    return early, late


def tokens_of(latent: torch.Tensor) -> torch.Tensor:
    """(B, N, C) as it is; (B, C, ...) as tokens (B, N, C)."""
    return latent if latent.ndim == 3 else latent.flatten(2).mT


def like(tokens: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    """The inverse of `tokens_of`."""
    return tokens if latent.ndim == 3 else tokens.mT.reshape(latent.shape)
