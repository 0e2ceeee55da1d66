"""Latte: spatial and temporal blocks in turn, for a fixed number of frames; the class's defaults build nothing."""

from dataclasses import replace

from ..examples.call import always
from .base import FamilyData

LATTE = FamilyData(
    ("LatteTransformer3DModel",),
    published={
        "in_channels": 4, "out_channels": 8, "patch_size": 2, "num_layers": 28, "attention_head_dim": 72,
        "cross_attention_dim": 1152, "caption_channels": 4096, "norm_type": "ada_norm_single",
        "num_embeds_ada_norm": 1000, "activation_fn": "gelu-approximate", "attention_bias": True,
        "norm_elementwise_affine": False,
    },
    config={"video_length": 3},
    arguments={"encoder_attention_mask": always(None)},  # its mask does not fit the frames that stand in the batch
    fit=lambda sizes: replace(sizes, frames=3),
)  # fmt: skip
