"""GLM-Image: a token of an autoregressive prior for every token of the image."""

import torch

from ..examples.call import filled, whole
from .base import FamilyData

GLM_IMAGE = FamilyData(
    ("GlmImageTransformer2DModel",),
    arguments={
        "prior_token_id": whole("B N", "prior_vq_quantizer_codebook_size"),
        "prior_token_drop": filled("B N", 0, torch.bool),
    },
)
