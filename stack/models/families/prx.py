"""PRX: axes of its rotary table by default those of heads of 64, and a mask of the text."""

import torch

from ..examples.call import filled
from .base import FamilyData

PRX = FamilyData(
    ("PRXTransformer2DModel",), time_scale=1.0, published={"axes_dim": [32, 32]},
    arguments={"attention_mask": filled("B T", 1, torch.bool)},
)  # fmt: skip
