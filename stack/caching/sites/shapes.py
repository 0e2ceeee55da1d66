"""Sizes of latents and elements, read from facts."""

from __future__ import annotations

import torch

from ...compat.rules.steps import LEARNED_VARIANCE
from ...core.facts import Facts
from ...core.passes import Finding


def more_than_the_latent(site: str, facts: Facts, stage: str) -> list[Finding]:
    """A denoiser that returns more numbers than it is given, such as a learned variance, is refused.

    Where it is given more than it returns, the latent is the first part of that (`stack.caching.latent.noisy_part`).
    """
    into, out = facts.latent
    if into >= out:
        return []
    what = f"site {site!r} adds to the latent: expected no more numbers out than in, got {out} for {into}"
    return [Finding.of(LEARNED_VARIANCE, stage, what, repair="site='output'", fatal=True)]


def element_bytes(facts: Facts) -> int:
    """Bytes of a number as the model computes."""
    return 4 if facts.dtype == "float32" else 2


def fp32_numbers(facts: Facts) -> int:
    """A latent in fp32, in numbers of the model's own dtype; 0 where the facts lack it."""
    return facts.image_tokens * facts.latent[1] * torch.float32.itemsize // element_bytes(facts)
