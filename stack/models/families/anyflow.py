"""AnyFlow: frames before channels, and a time for each frame."""

import torch

from ..examples.call import Call, Rule, noise
from .base import FamilyData


def _per_frame(share: float) -> Rule:
    return lambda name, call: torch.full((call.sizes.batch, call.frames), 1000 * share * call.sizes.noise)


def _chunks(name: str, call: Call) -> list[int]:
    return [1, call.frames - 1]


ANYFLOW = FamilyData(
    ("AnyFlowTransformer3DModel", "AnyFlowFARTransformer3DModel"),
    arguments={
        "hidden_states": noise("B F C H W"), "timestep": _per_frame(1.0), "r_timestep": _per_frame(0.8),
        "chunk_partition": _chunks,
    },
)  # fmt: skip
