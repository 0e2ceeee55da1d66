"""DiT: takes square images only."""

from dataclasses import replace

from .base import FamilyData

DIT = FamilyData(("DiTTransformer2DModel",), fit=lambda sizes: replace(sizes, columns=sizes.rows))
