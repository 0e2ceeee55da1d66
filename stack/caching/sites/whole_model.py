"""Around the whole denoiser: on a cached step nothing of the model runs, neither embedders nor head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ...core.facts import Facts
from ...core.installer import Installer
from ...core.passes import Finding
from ...core.ranks import ALONE
from ...models.layout import Wiring
from ...runtime.call import DenoiserCall, Interceptor, Proceed
from ...runtime.step import NOTHING
from ...runtime.target import Target
from ..contract import BeforeBlocks, Installs, PolicyLike, Site, SiteState, register_site
from ..controller import CacheController, CacheSlot
from ..gates import SumGate
from ..latent import noisy_part
from .shapes import more_than_the_latent

ADDED = "added"  # key of out - in, the feature that is predicted
BEFORE, IN, OUT = "before", "in", "out"  # the latent of the step before; both ends of the last full step


@register_site
@dataclass(frozen=True)
class WholeModelSite(Site):
    """What the whole denoiser adds to the latent."""

    name: ClassVar[str] = "whole-model"
    words: ClassVar[str] = "what the whole denoiser adds to the latent"
    correctable: ClassVar[bool] = False
    measures_slope: ClassVar[bool] = True

    needs: ClassVar[tuple[str, ...]] = ("whole",)

    def refuses(self, facts: Facts, stage: str) -> list[Finding]:
        return more_than_the_latent(self.name, facts, stage)

    def state(self, facts: Facts, policy: PolicyLike) -> SiteState | None:
        into, out = (facts.image_tokens * numbers for numbers in facts.latent)
        return SiteState(predicted=out, kept=2 * into + out if policy.gate else 0) if into else None

    def build(self, controller: CacheController, target: Target, policy: PolicyLike) -> Installs:
        return WholeModel(controller)


class WholeModel(BeforeBlocks):
    """Caches what the denoiser adds to the raw latent: out = in + (out - in) of the last full step (EasyCache).

    With a gate every sample is decided on its own: on each step its sum grows by k mean|in - in_before| / mean|out|,
    `in_before` being the previous step's latent, cached or not, `out` the last full step's output, and
    k = mean|out - out'| / mean|in - in'| between the last two full steps. Where some samples of a batch run and others
    do not, the denoiser is called with those that run. Where its arguments cannot be split (`Wiring.inputs` is empty,
    or an adapter or control net hands over collections), the batch is cached only where every sample would be, and then
    a batched picture may differ from the same picture alone.
    """

    def __init__(self, controller: CacheController):
        self.controller = controller
        self.interceptors: tuple[Interceptor, ...] = (self,)
        self._inputs: tuple[str, ...] = ()

    def install(self, denoiser: nn.Module, wiring: Wiring, install: Installer) -> int:
        """Nothing but its interceptor stands before the denoiser; returns 1, the number of places."""
        self._inputs, self.controller.cached_work = wiring.inputs, NOTHING
        return 1

    def intercept(self, call: DenoiserCall, proceed: Proceed) -> Any:
        controller, latent, names = self.controller, call.latent, self._inputs
        controller.begin(latent)
        slots, gated = controller.slots, controller.new_gate is not None
        # Outside of the hooks that split tokens every process sees all of them.
        changes = ALONE.mean_ratios([_moved(c, latent[i : i + 1]) for i, c in enumerate(slots)]) if gated else None
        skips = controller.decide(changes=changes, together=not call.separable(names))
        for i, slot in enumerate(slots if gated else ()):
            slot.kept[BEFORE] = latent[i : i + 1].clone()  # the caller's memory may be written to
        if not any(skips):
            result = proceed(call)
            self._learn(latent, call.made(result), slots)
            return result
        skipped = [i for i, skip in enumerate(skips) if skip]
        if len(skipped) == len(skips):
            return call.answer(_onto(latent, controller.predict(ADDED, slots)))
        ran = [i for i, skip in enumerate(skips) if not skip]
        some = call.only(ran, names)
        with controller.clock.only(ran):
            out = some.made(proceed(some))
        self._learn(latent[ran], out, [slots[i] for i in ran])
        whole = out.new_empty(len(latent), *out.shape[1:])
        whole[ran] = out
        whole[skipped] = _onto(latent[skipped], controller.predict(ADDED, [slots[i] for i in skipped])).to(out.dtype)
        return call.answer(whole)

    def _learn(self, latent: torch.Tensor, out: torch.Tensor, slots: list[CacheSlot]) -> None:
        """These samples have run."""
        gated = [(i, slot, slot.gate) for i, slot in enumerate(slots) if isinstance(slot.gate, SumGate)]
        slopes = ALONE.mean_ratios([_slope(slot, out[i : i + 1]) for i, slot, _ in gated])
        for (i, slot, gate), slope in zip(gated, slopes, strict=True):
            gate.ran(slope)
            slot.kept[IN], slot.kept[OUT] = slot.kept[BEFORE], out[i : i + 1].clone()
        self.controller.store(ADDED, out - noisy_part(latent, out), slots)


def _onto(latent: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """The output: the latent's noisy part plus what the model added."""
    return noisy_part(latent, added) + added


def _moved(slot: CacheSlot, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """How far the latent has come in one step, and what that is relative to: the output of the last full step."""
    kept = slot.kept
    return (latent - kept[BEFORE], kept[OUT]) if OUT in kept else None


def _slope(slot: CacheSlot, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """How far the output has come since the last full step, and the latent."""
    kept = slot.kept
    return (out - kept[OUT], kept[BEFORE] - kept[IN]) if OUT in kept else None
