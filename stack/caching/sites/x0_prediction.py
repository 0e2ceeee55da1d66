"""The denoiser's estimate of the clean sample, forecast on cached steps.

Every output m of a denoiser amounts to an estimate of the clean sample, x0 = c x + d m. It changes more slowly than the
output, and the latent x that a cached step starts from is known exactly: m = (x0 - c x) / d costs nothing, and an
error in x is partly taken back by the next step. This is data prediction, as in DPM-Solver++ (Lu et al. 2022,
arXiv:2211.01095), on the steps of the model's own schedule and sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ...compat.rules.steps import SAMPLER_NOT_PLAIN
from ...core.facts import Facts
from ...core.installer import Installer
from ...core.passes import Finding
from ...models.layout import Wiring
from ...models.sampler import LinearSampler
from ...runtime.call import DenoiserCall, Interceptor, Proceed
from ...runtime.step import NOTHING
from ...runtime.target import Target
from ..contract import BeforeBlocks, Installs, PolicyLike, Site, SiteState, register_site
from ..controller import CacheController
from ..latent import output_of, turned, x0_of
from .shapes import fp32_numbers, more_than_the_latent

X0 = "x0"  # key of x0


@register_site
@dataclass(frozen=True)
class X0Site(Site):
    """The denoiser's estimate of the clean sample."""

    name: ClassVar[str] = "x0"
    words: ClassVar[str] = "the denoiser's estimate of the clean sample; nothing of the model runs"
    forecasts_x0: ClassVar[bool] = True

    needs: ClassVar[tuple[str, ...]] = ("whole",)

    def refuses(self, facts: Facts, stage: str) -> list[Finding]:
        if facts.sampler:
            return [Finding.of(SAMPLER_NOT_PLAIN, stage, facts.sampler, fatal=True)]
        return more_than_the_latent(self.name, facts, stage)

    def state(self, facts: Facts, policy: PolicyLike) -> SiteState | None:
        numbers = fp32_numbers(facts)  # always in fp32, whatever the model computes in
        kept = facts.image_tokens * facts.latent[1] if policy.state_dtype else numbers
        return SiteState(predicted=kept) if numbers else None

    def build(self, controller: CacheController, target: Target, policy: PolicyLike) -> Installs:
        return X0Prediction(controller, target.sampler())


class X0Prediction(BeforeBlocks):
    """Intercepts the denoiser; no part of the model runs on a cached step.

    Whole batches under a schedule only. Guidance branches each keep their own estimate.

    Args:
        sampler: that of the current request.
    """

    def __init__(self, controller: CacheController, sampler: Callable[[], LinearSampler]):
        self.controller, self.sampler = controller, sampler
        self.interceptors: tuple[Interceptor, ...] = (self,)

    def install(self, denoiser: nn.Module, wiring: Wiring, install: Installer) -> int:
        """Nothing but its interceptor stands before the denoiser; returns 1, the number of places."""
        self.controller.cached_work = NOTHING
        return 1

    def intercept(self, call: DenoiserCall, proceed: Proceed) -> Any:
        controller, latent = self.controller, call.latent
        controller.begin(latent)
        cached = all(controller.decide())
        if not controller.now.known:
            return proceed(call)
        estimate, x = turned(self.sampler().estimates[controller.now.step], call), latent.float()
        if cached:
            out = output_of(estimate, x, controller.predict(X0, controller.slots))
            return call.answer(out.to(latent.dtype))
        result = proceed(call)
        out = call.made(result).float()
        x0 = x0_of(estimate, x, out)
        # The latent is exact: all noise of the estimate is d times that of the output.
        noise_gain = float(abs(estimate.d) * out.norm() / x0.norm()) if controller.noise else 1.0
        controller.store(X0, x0, controller.slots, noise_gain=noise_gain)
        return result
