"""How much a cache holds, known before it runs: a pure function of policy and facts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from ..compat.subspace import EXACT_WIDTH, SKETCH
from ..core.facts import Facts
from .forecast import Forecast
from .policy import DTYPES, Policy
from .sites.shapes import fp32_numbers


@dataclass(frozen=True)
class Unit:
    """Predicted features that are used together.

    Attributes:
        count: how many, one per stream.
        bytes: of all.
    """

    count: int
    bytes: int


@dataclass(frozen=True)
class StateSize:
    """Bytes per picture and guidance branch, once enough full steps have run.

    Attributes:
        features: of features, differences, and what a gate compares with. Exact but for a few numbers per module.
        bases: the most that principal subspaces can take; their rank depends on the picture.
        units: what each block or module holds of its predicted features, in running order; empty where one feature
            is kept for the whole model. A part of `features`.
    """

    features: int
    bases: int = 0
    units: tuple[Unit, ...] = ()

    @property
    def total(self) -> int:
        """The most that is held."""
        return self.features + self.bases

    def __str__(self) -> str:
        bases = f" and at most {self.bases / 1e6:.1f} MB of bases" if self.bases else ""
        return f"{self.features / 1e6:.1f} MB of state{bases}"


def tensors_of(forecast: Forecast, noisy: bool = False) -> int:
    """Tensors that a predictor holds per feature once it has seen order + 1 full steps (two more for a level).

    Args:
        noisy: one more, to pass over a step that is too near.
    """
    order = forecast.effective_order
    raw = max(1, order + bool(forecast.smoothing) + (noisy and order > 0))
    # A difference that is taken as it is, is held once: not where gains or a split make another tensor of it.
    shaped = tuple(forecast.gains) != (1, 1) or noisy
    return 1 + order + (raw - 1 if shaped else 0) + (2 if forecast.level else 0)


def state_size(policy: Policy, facts: Facts) -> StateSize | None:
    """State of one picture and one guidance branch; None where its tokens or blocks are unknown.

    A corrector holds the estimates of the last full step and of the cached ones since. What it owes at later calls
    behind a sampler with memory, a latent for each, is not counted.
    """
    held = policy.site.state(facts, policy) if facts.image_tokens else None
    if held is None:
        return None
    latent = fp32_numbers(facts) if policy.corrected else 0
    if policy.corrected and not latent:
        return None
    model = torch.float32 if facts.dtype == "float32" else torch.bfloat16
    kept_in = DTYPES[policy.state_dtype] or model
    wide = torch.promote_types(kept_in, model).itemsize
    tensors = tensors_of(policy.forecast, noisy=bool(policy.noise))
    per_token = facts.width * tensors
    one = (sum(held.features) * facts.width + held.predicted) * kept_in.itemsize
    owed = [gap * latent * model.itemsize for gap in _gaps(policy, facts)] if policy.corrected else [0, 0]
    # Behind the first full step there is one feature, and no difference yet.
    growing = max([one + owed[0], *(tensors * one + later for later in owed[1:])])
    probe = facts.image_tokens * facts.width if policy.gate and policy.gate.keeps_probe else 0
    bases = bands = 0
    if policy.banded:
        bands = len(held.features) * sum(length**2 for length in facts.grid)  # a square projection along every axis
    elif policy.forecast.splits:
        bases = sum(facts.width * min(tokens, _ranks(facts.width)) for tokens in held.features)
    rest = held.stored * kept_in.itemsize + (held.kept + probe) * model.itemsize + bands * wide
    features = growing + rest
    units = [Unit(len(unit), sum(unit) * per_token * kept_in.itemsize) for unit in held.units]
    return StateSize(features, bases * wide, tuple(units) if policy.site.divisible else ())


def _gaps(policy: Policy, facts: Facts) -> list[int]:
    """Per run of cached steps the latents that a corrector holds: of the full step before it, and of each of them."""
    full = sorted(policy.schedule_for(facts.steps, (), facts.levels).full_steps(facts.steps))
    return [b - a for a, b in pairwise((*full, facts.steps))]


def _ranks(width: int) -> int:
    return width if width <= EXACT_WIDTH else SKETCH
