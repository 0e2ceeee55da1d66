"""FramePack: numbered frames, and frames from before in three resolutions."""

from ..examples.call import counted, noise
from .base import FamilyData

FRAMEPACK = FamilyData(
    ("HunyuanVideoFramepackTransformer3DModel",),
    published={"has_image_proj": True, "has_clean_x_embedder": True},
    arguments={
        "image_embeds": noise("B 3 image_proj_dim"), "indices_latents": counted("F"),
        "latents_clean": noise("B C 2 H W"), "indices_latents_clean": counted("2"),
        "latents_history_2x": noise("B C 2 H W"), "indices_latents_history_2x": counted("2"),
        "latents_history_4x": noise("B C 4 H W"), "indices_latents_history_4x": counted("4"),
    },
)  # fmt: skip
