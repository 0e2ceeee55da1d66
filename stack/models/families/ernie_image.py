"""ERNIE-Image: text under a name of its own, with the length of each sample's."""

import torch

from ..examples.call import noise
from .base import FamilyData

ERNIE_IMAGE = FamilyData(
    ("ErnieImageTransformer2DModel",),
    arguments={
        "text_bth": noise("B T text_in_dim"),
        "text_lens": lambda name, call: torch.full((call.sizes.batch,), call.sizes.text),
    },
)
