"""Nucleus: experts in all blocks but the first three and the last."""

from .base import FamilyData

NUCLEUS_MOE = FamilyData(("NucleusMoEImageTransformer2DModel",), config={"num_layers": 5, "num_experts": 16})
