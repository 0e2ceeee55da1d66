"""Chroma: one mask for text and image."""

import torch

from ..examples.call import filled
from .base import FamilyData

CHROMA = FamilyData(("ChromaTransformer2DModel",), arguments={"attention_mask": filled("B T+N", 1, torch.bool)})
