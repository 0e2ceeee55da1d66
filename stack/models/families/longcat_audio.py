"""LongCat-Audio: masks of sound and text, and a sound to go on from."""

import torch

from ..examples.call import filled, noise
from .base import FamilyData

LONGCAT_AUDIO = FamilyData(
    ("LongCatAudioDiTTransformer",), time_scale=1.0,
    arguments={"attention_mask": filled("B N", 1, torch.bool), "latent_cond": noise("B N latent_dim")},
)  # fmt: skip
