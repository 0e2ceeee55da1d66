"""Full steps correct the error of the forecasts before them, as the corrector of a multistep solver does.

Every output m of a denoiser amounts to an estimate of the clean sample, x0 = c x + d m. On a full step that estimate is
known at both ends of the cached steps just before. What they should have used is interpolated between the ends, what
they used instead is owed, and the sampler's own weights say what to add to the estimates from here on, so that the
latent is where the run with the interpolated estimates would be. Solvers call it a corrector (UniPC, Zhao et al. 2023,
arXiv:2302.04867). It needs no call of the model, only the estimates that were used, and works whatever was forecast: a
hidden state, the outputs of modules, or the estimate itself.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from ..models.sampler import LinearSampler
from ..runtime.call import DenoiserCall, Proceed
from .controller import CacheController, CacheSlot
from .forecast import coordinate
from .latent import like, turned, x0_of
from .learned import PAST, Corrections, key_of

OTHER_LENGTH = "a step whose output is of other tokens than its latent: it is not corrected"
OTHER_LEVELS = "learned corrections are of other noise levels: plain forecasts stand in; calibrate() again for these"


class Corrector:
    """Intercepts calls before the site of a cache does.

    Guidance branches each correct themselves: whatever affine combination of branches the pipeline makes of the
    outputs, it makes of their corrections too.

    Args:
        sampler: that of the current request.
        order: of the interpolation between full steps: 1 takes both ends, higher ones full steps further back too.
        learned: what is added to estimates first, on the noise levels that it was learnt on.
    """

    def __init__(
        self,
        controller: CacheController,
        sampler: Callable[[], LinearSampler],
        order: int = 1,
        learned: Corrections | None = None,
    ):
        self.controller, self.sampler, self.order, self.learned = controller, sampler, order, learned

    def intercept(self, call: DenoiserCall, proceed: Proceed) -> Any:
        result, controller = proceed(call), self.controller
        now, slots = controller.now, controller.slots
        if not now.known:
            return result
        estimate = turned(self.sampler().estimates[now.step], call)
        x, made = call.latent.float(), call.made(result)
        out = made.float()
        axis, tokens = (2, slice(1, 2)) if x.ndim == 3 else (1, slice(2, None))
        if x.shape[tokens] != out.shape[tokens]:  # a step that takes a picture in and returns what is behind it
            controller.journal.warn(OTHER_LENGTH)
            return result
        # A variance, which some models return behind it, goes into no latent.
        mean, *variance = out.split(x.shape[axis], axis)
        x0 = x0_of(estimate, x, mean)
        rows = x0.split(len(x0) // len(slots))
        shifts = [self._shift(slot, row) for slot, row in zip(slots, rows, strict=True)]
        if all(shift is None for shift in shifts):
            return result
        shift = torch.cat([torch.zeros_like(row) if s is None else s for s, row in zip(shifts, rows, strict=True)])
        out = torch.cat([mean + like(shift, x) / estimate.d, *variance], axis)
        return call.answer(out.to(made.dtype))

    def _shift(self, slot: CacheSlot, x0: torch.Tensor) -> torch.Tensor | None:
        """What is to be added to a slot's estimate (B, N, C); None where nothing is owed."""
        call, debts = self.controller.now.step, slot.debts
        learnt = self._learnt(slot, x0) if self.learned and debts.full else None
        x0 = x0 if learnt is None else x0 + learnt
        if slot.run:
            debts.used[call] = x0
        else:
            off = debts.ran(call, x0, self.sampler(), self._coordinates, self.order, PAST if self.learned else 0)
            self.controller.measure(slot, off, x0.square().mean().sqrt())
        owed = debts.owed.pop(call, None)
        if learnt is None or owed is None:
            return owed if learnt is None else learnt
        return owed + learnt

    def _learnt(self, slot: CacheSlot, x0: torch.Tensor) -> torch.Tensor | None:
        """What is to be added to a slot's estimate by what was learnt; None for nothing."""
        learned, controller = self.learned, self.controller
        assert learned is not None
        if bool(slot.run) != (learned.kind == "l2p") or not (slot.run or slot.debts.used):
            return None
        if not learned.holds(controller.clock.sigma_schedule.sigmas):
            controller.journal.warn(OTHER_LEVELS)
            return None
        now, (before, _) = controller.now, slot.debts.full[0]
        parts = self._differences(slot, x0)
        return learned.correction(key_of(now.branch, before, now.step), parts, x0) if parts else None

    def _differences(self, slot: CacheSlot, x0: torch.Tensor) -> list[torch.Tensor]:
        """What corrections are linear in, (B, N, C) each; see `stack.caching.learned`."""
        call, debts = self.controller.now.step, slot.debts
        past = [full for _, full in debts.full]
        steps = [new - old for new, old in pairwise(past)]
        if slot.run:
            return steps
        missed = debts.missed(call, x0, self._coordinates, self.order)
        weights = self.sampler().weights[call, list(debts.used)]
        moved = torch.stack([float(weight) * debt for weight, debt in zip(weights, missed, strict=True)]).sum(0)
        return [moved, x0 - past[0], *steps[:1]]

    @property
    def _coordinates(self) -> list[float]:
        """Of every call of the request."""
        name, schedule = self.controller.coordinate, self.controller.clock.sigma_schedule
        levels = zip(schedule.times, schedule.sigmas, strict=True)
        return [coordinate(name, step, time, sigma) for step, (time, sigma) in enumerate(levels)]
