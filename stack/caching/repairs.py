"""A cache fitted to the stack it meets, from facts alone: few steps, noisy activations. Pure."""

from __future__ import annotations

import math
from dataclasses import replace

from ..compat.horizon import partial_depth
from ..compat.noise import rounding_floor
from ..compat.rules.rounded_caches import HIGHEST_ROUNDED_ORDER
from ..core.facts import Facts
from .forecast import Forecast
from .policy import Policy
from .schedule_policy import SchedulePolicy
from .sites.block_range import OutputSite, ResidualSite
from .splits import ChannelSplit

FULL_OF_FEW = 0.6  # share of few steps that run in full: 5 of 8, 3 of 4
COARSE_BITS = 7  # with fewer, second differences are mostly noise


def for_few_steps(p: Policy, facts: Facts) -> Policy:
    """The cache to use on a schedule of few steps, where an interval leaves forecasts nothing to go on.

    Behind a corrector whole steps are cached there too, three in five full and placed by noise level. Behind other
    samplers, and for caches that decide block by block, it is partial depth.
    """
    if not (facts.pipeline and can_correct(facts)):
        return _partial_depth(p, facts)
    kept = p if p.scheduled and p.correctable else replace(p, gate=None, site=OutputSite(), split=ChannelSplit())
    forecast = replace(kept.forecast, order=min(1, kept.forecast.order), coordinate="time", basis="newton")
    schedule = SchedulePolicy(count=math.ceil(FULL_OF_FEW * facts.steps), spread="by-noise")
    return replace(kept, schedule=schedule, forecast=forecast, corrected=True)


def _partial_depth(p: Policy, facts: Facts) -> Policy:
    """Half of the steps run in full, the first and the last among them; on the others the front and back third of the
    blocks run, and what the blocks between them add is extrapolated to order 1.

    Measured on adapters of 4 and 8 steps: 3 to 4 dB over reusing the last hidden state, and on flow models 2 to 5 dB
    more for moving the last full step to the end; nothing on shapes-dit (docs/benchmarks.md). Partial tokens lost 1 to
    2 dB, so caches of tokens get depth too.
    """
    front, back = partial_depth(facts.blocks)
    return Policy(
        schedule=SchedulePolicy(interval=2, warmup=1, switches=(1 - 1 / facts.steps,)),
        forecast=Forecast(order=1, gains=(1.0, 1.0)),
        site=ResidualSite(front, back),
        state_dtype=p.state_dtype,
        max_bytes=p.max_bytes,
        noise=p.noise,
    )


def can_correct(facts: Facts) -> bool:
    """Whether x0 can be computed from the denoiser's output, and the sampler neither adds noise nor clips."""
    return facts.returns_latent and not facts.sampler and "whole" not in facts.lacks


def for_noise(p: Policy, facts: Facts) -> Policy | None:
    """The cache to use where full steps are noisy: as measured (`Policy.noise`), or by activations rounded on each.

    Differences are Newton's, over the gaps that there are, and are shrunk to what stands out of the noise: of what was
    measured, else of the rounding error that the bits make (`rounding_floor`). None where nothing is differenced, and
    where nothing was measured and finished pictures chose full steps and gains: there shrinking costs as much as it
    gains (0.0 to -0.6 dB on shapes-flux).
    """
    forecast, noise = p.forecast, p.noise
    order, unknown = forecast.effective_order, not noise
    if not order or (unknown and (p.schedule.full_steps or not facts.rounds_activations)):
        return None
    if forecast.coordinate == "step" and forecast.basis == "taylor":
        forecast = replace(forecast, basis="newton")
    if unknown:
        floor = rounding_floor(facts.activation_bits, facts.width)
        noise = ((0.0, floor), (1.0, floor))
        if facts.activation_bits < COARSE_BITS and order > HIGHEST_ROUNDED_ORDER:
            forecast = replace(forecast, order=HIGHEST_ROUNDED_ORDER)
    return replace(p, forecast=forecast, noise=noise) if (forecast, noise) != (p.forecast, p.noise) else None


def angle(p: Policy, facts: Facts) -> float | None:
    """Bound on sin(theta) of bases found under other bits than the stack has now; None where that is no matter.

    Floating point counts as 16 bits. The relative error is the measured noise floor, or what rounding to the fewer bits
    leaves.
    """
    bases, now = p.split.found, (min(16, facts.weight_bits), min(16, facts.activation_bits))
    if bases is None or now == bases.bits:
        return None
    fewest = min(*now, *bases.bits)
    noise = max((error for _, error in p.noise), default=0.0) or rounding_floor(fewest, facts.width)
    return bases.turned(noise)


def always_running(p: Policy, facts: Facts) -> float:
    """Share of the blocks that runs on cached steps too."""
    return (p.site.front_blocks + p.site.back_blocks) / max(1, facts.blocks)
