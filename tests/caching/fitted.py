"""What calibration would have found, made up: for tests that run every preset."""

from __future__ import annotations

from typing import Any

import torch

from stack.caching.fastcache.linear_map import LinearMap
from stack.caching.fastcache.maps import APPROXIMATIONS, WHOLE, LinearMaps
from stack.caching.gate_policies import MagnitudePolicy
from stack.caching.methods import PRESETS, READING
from stack.caching.policy import Policy
from stack.caching.sites.fastcache import FastCacheSite
from stack.models.layout import Wiring

# One row for every way of caching. Plain names and readings differ in their schedule, forecast and corrector only.
PLAIN = [name for name in PRESETS if not name.endswith(READING)]
KINDS = [name for name in PRESETS if name + READING not in PRESETS]  # readings where there are some


def fitted(preset: str, wiring: Wiring, blocks: int, width: int, steps: int, device: str = "cpu") -> dict[str, Any]:
    """Options that a preset is refused without; {} for most."""
    policy: Policy = PRESETS[preset]
    if isinstance(policy.gate, MagnitudePolicy):
        return {"ratios": (1.0,) * steps}
    if isinstance(policy.site, FastCacheSite) and policy.site.needs_maps:
        return {"maps": _maps(wiring, blocks, width, device)}
    return {}


def _maps(wiring: Wiring, blocks: int, width: int, device: str) -> LinearMaps:
    """Maps that add nothing; every block may be replaced while its input changes by less than its own norm."""
    nothing = LinearMap((torch.zeros(width, width, device=device),), torch.zeros(width, device=device))
    maps = dict.fromkeys(
        [WHOLE, *(f"{block}/{stream}" for block in range(blocks) for stream in wiring.streams)], nothing
    )
    table = torch.tensor([[[1.0]] * blocks, [[0.0]] * blocks], device="cpu")
    return LinearMaps(
        family=wiring.family,
        blocks=blocks,
        width=width,
        maps=dict.fromkeys(APPROXIMATIONS, maps),
        tables=dict.fromkeys(APPROXIMATIONS, table),
    )
