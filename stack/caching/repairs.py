"""A cache fitted to the stack it meets, from facts alone: few steps, noisy activations. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..compat.horizon import partial_depth
from ..compat.noise import rounding_floor
from ..compat.rules.rounded_caches import HIGHEST_ORDER
from ..core.facts import Facts
from .policy import SPANS, Policy

COARSE_BITS = 7  # with fewer, second differences are mostly noise


def for_few_steps(p: Policy, facts: Facts) -> dict[str, Any]:
    """What to change where no whole step can be forecast: partial depth.

    Half of the steps run in full, the first and the last among them; on the others the front and back third of the
    blocks run, and what the blocks between them add is carried on by order 1. Measured on adapters of 4 and 8 steps:
    3 to 4 dB over reusing the last hidden state, and on flow models 2 to 5 dB more for moving the last full step to the
    end; nothing on shapes-dit (docs/benchmarks.md). Partial tokens lost 1 to 2 dB, so caches of tokens get depth too.
    A corrector adds 0.4 to 3.5 dB where the sampler allows one: on four pictures of 8 steps 45.0 to 48.4 (shapes-flux),
    44.1 to 46.4 (shapes-video), 34.9 to 35.3 (shapes-dit), on the adapters 43.1 to 44.8 and 43.3 to 44.0.
    """
    front, back = partial_depth(facts.blocks)
    last = (1 - 1 / facts.steps,)
    when = Policy(interval=2, warmup=1, switches=last)
    plain = replace(
        when,
        site="residual",
        front=front,
        back=back,
        order=1,
        gains=(1.0, 1.0),
        corrected=facts.pipeline and can_correct(facts),
    )
    kept = ("state_dtype", "max_bytes", "noise")
    return {**vars(plain), **{name: getattr(p, name) for name in kept}}


def can_correct(facts: Facts) -> bool:
    """Whether the clean sample can be read off the denoiser's output, behind a sampler whose steps are plain sums."""
    into, out = facts.latent
    return into == out and not facts.sampler


def for_noise(p: Policy, facts: Facts) -> dict[str, Any]:
    """What to change where full steps are noisy: measured (`Policy.noise`), or activations rounded anew on every step.

    Differences are Newton's, over real gaps in time, and are shrunk to what stands out of the noise: of what was
    measured, else of the rounding error that the bits make (`rounding_floor`). {} where nothing is differenced, and
    where nothing was measured and finished pictures chose full steps and gains: there shrinking costs as much as it
    gains (0.0 to -0.6 dB on shapes-flux).
    """
    order = p.forecast.effective_order
    unknown = not p.noise
    if not order or (unknown and (p.full_steps or not facts.rounds_activations)):
        return {}
    changes: dict[str, Any] = {}
    if p.coordinate == "step" and p.basis == "taylor":
        changes |= {"coordinate": "time", "basis": "newton"}
    if unknown:
        floor = rounding_floor(facts.activation_bits, facts.width)
        changes["noise"] = ((0.0, floor), (1.0, floor))
    if unknown and facts.activation_bits < COARSE_BITS and order > HIGHEST_ORDER:
        changes["order"] = HIGHEST_ORDER
    return changes


def angle(p: Policy, facts: Facts) -> float | None:
    """Bound on sin(theta) of bases found under other bits than the stack has now; None where that is no matter.

    Floating point counts as 16 bits. The relative error is the measured noise floor, or what rounding to the fewer bits
    leaves.
    """
    now = (min(16, facts.weight_bits), min(16, facts.activation_bits))
    if p.bases is None or now == p.bases.bits:
        return None
    fewest = min(*now, *p.bases.bits)
    noise = max((error for _, error in p.noise), default=0.0) or rounding_floor(fewest, facts.width)
    return p.bases.turned(noise)


def always_running(p: Policy, facts: Facts) -> float:
    """Share of the blocks that runs on cached steps too."""
    return (p.front + p.back) / facts.blocks if p.site in SPANS else 0.0
