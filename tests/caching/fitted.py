"""What calibration would have found, made up: for tests that run every preset."""

from __future__ import annotations

from typing import Any

import torch

from stack.caching.fastcache.linear_map import LinearMap
from stack.caching.fastcache.maps import CARRIES, WHOLE, LinearMaps
from stack.caching.policy import PRESETS, Policy
from stack.models.wiring import Wiring


def fitted(preset: str, wiring: Wiring, blocks: int, width: int, steps: int, device: str = "cpu") -> dict[str, Any]:
    """Options that a preset is refused without; {} for most."""
    policy: Policy = PRESETS[preset]
    if policy.gate == "magnitude":
        return {"ratios": (1.0,) * steps}
    if policy.site == "fastcache" and policy.needs_maps:
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
        maps=dict.fromkeys(CARRIES, maps),
        tables=dict.fromkeys(CARRIES, table),
    )
