"""PixArt: resolution and aspect ratio as conditions of the 1024 pixel models."""

import torch

from ..examples.call import Call
from .base import FamilyData


def _resolution(name: str, call: Call) -> dict[str, torch.Tensor]:
    batch = call.sizes.batch
    return {"resolution": torch.full((batch, 2), 64.0), "aspect_ratio": torch.full((batch, 1), 0.7)}


PIXART = FamilyData(
    ("PixArtTransformer2DModel",),
    published={"caption_channels": 4096},
    config={"num_attention_heads": 3, "cross_attention_dim": 48},  # the embedding of sizes is a third as wide
    arguments={"added_cond_kwargs": _resolution},
)
