"""Sizes of latents and elements, read from facts."""

from __future__ import annotations

import torch

from ...compat.rules.steps import IN_AND_OUT, MORE_THAN_THE_LATENT
from ...core.facts import Facts
from ...core.passes import Finding


def more_than_the_latent(site: str, facts: Facts, stage: str) -> list[Finding]:
    """A denoiser that returns neither its latent nor that and a variance is refused, see `Facts.returns_latent`."""
    if facts.returns_latent:
        return []
    into, out = facts.latent
    what = f"site {site!r} adds to the latent: {IN_AND_OUT}, got {out} for {into}"
    return [Finding.of(MORE_THAN_THE_LATENT, stage, what, repair="site='output'", fatal=True)]


def fp32_numbers(facts: Facts) -> int:
    """A latent in fp32, in numbers of the model's own dtype; 0 where the facts lack it."""
    return facts.image_tokens * facts.latent[1] * torch.float32.itemsize // facts.item_bytes
