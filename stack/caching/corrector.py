"""Full steps correct the error of the forecasts before them, as the corrector of a multistep solver does.

Every output m of a denoiser amounts to an estimate of the clean sample, x0 = c x + d m. On a full step that estimate is
known at both ends of the cached steps just before. Those are replayed with x0 interpolated between the two ends instead
of forecast, and the shift of the latent x that results is added to the full step's output. Solvers call it a corrector
(UniPC, Zhao et al. 2023, arXiv:2302.04867). It needs no call of the model, only a running sum of the estimates that
were used, and works whatever was forecast: a hidden state, the outputs of modules, or the estimate itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..models.sampler import AffineStep
from ..runtime.call import DenoiserCall, Proceed
from .controller import CacheController, CacheSlot
from .latent import like, returned_as, x0_of

USED, LAST = "corrector/used", "corrector/last"  # the running sum since the last full step, and its own estimate


class Corrector:
    """Intercepts calls before the site of a cache does.

    Whole batches under a schedule only. Guidance branches each correct themselves: whatever affine combination of
    branches the pipeline makes of the outputs, it makes of their corrections too.

    Args:
        steps: the sampler's steps of the current request.
    """

    def __init__(self, controller: CacheController, steps: Callable[[], list[AffineStep]]):
        self.controller, self.steps = controller, steps
        self._segment: dict[str, list[tuple[int, float]]] = {}  # cached steps since the last full one, by branch
        self._full: dict[str, float] = {}  # coordinate of that one

    def intercept(self, call: DenoiserCall, proceed: Proceed) -> Any:
        result = proceed(call)
        now, (slot,) = self.controller.now, self.controller.slots
        if not now.known:
            return result
        step, x, out = self.steps()[now.step], call.latent.float(), result[0].float()
        x0 = x0_of(step, x, out)
        if slot.run:
            self._note(slot, step, x0)
            return result
        moved = self._missed(slot, x0)
        slot.kept[LAST], self._full[now.branch] = x0, self.controller.x
        if moved is None:
            return result
        # The sampler starts its step from x, not from x + moved: the output makes up for both.
        out = out + (step.keeps / step.b) * like(moved, x)
        return returned_as(call, out.to(result[0].dtype))

    def _note(self, slot: CacheSlot, step: AffineStep, x0: torch.Tensor) -> None:
        """A forecast was used."""
        sum_so_far = slot.kept.get(USED)
        added = step.adds * x0
        slot.kept[USED] = added if sum_so_far is None else step.keeps * sum_so_far + added
        now = self.controller.now
        self._segment.setdefault(now.branch, []).append((now.step, self.controller.x))

    def _missed(self, slot: CacheSlot, x0: torch.Tensor) -> torch.Tensor | None:
        """How far the cached steps just behind should have taken x elsewhere, (B, N, C); None where there were none."""
        branch = self.controller.now.branch
        used, segment = slot.kept.pop(USED, None), self._segment.pop(branch, [])
        if used is None:
            return None
        early, late = between(self.steps(), segment, self._full[branch], self.controller.x)
        return early * slot.kept[LAST] + late * x0 - used


def between(steps: list[AffineStep], segment: list[tuple[int, float]], start: float, end: float) -> tuple[float, float]:
    """Weights of both end estimates in the latent x after a run of cached steps, x0 interpolated between the ends.

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
