"""Nucleus: experts in all blocks but the first three and the last."""

from .base import FamilyData

NUCLEUS_MOE = FamilyData(
    ("NucleusMoEImageTransformer2DModel",), published={"out_channels": 16},
    config={"num_layers": 5, "num_experts": 16},
)  # fmt: skip
