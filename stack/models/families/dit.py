"""DiT: takes square images only; its pipeline calls both guidance branches at once."""

from dataclasses import replace

from .base import FamilyData

DIT = FamilyData(("DiTTransformer2DModel",), fit=lambda sizes: replace(sizes, columns=sizes.rows), halves=True)
