"""What descends from Wan and takes more than a video and a text."""

from ..examples.call import noise, where
from .base import FamilyData

WAN_VACE = FamilyData(
    ("WanVACETransformer3DModel",), arguments={"control_hidden_states": noise("B vace_in_channels F H W")}
)
SKYREELS = FamilyData(
    ("SkyReelsV2Transformer3DModel",),
    arguments={"fps": where("inject_sample_info", lambda name, call: [1] * call.sizes.batch)},
)
WAN_ANIMATE = FamilyData(
    ("WanAnimateTransformer3DModel",),
    config={
        "motion_encoder_size": 16, "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8}, "motion_style_dim": 40,
        "motion_encoder_dim": 40, "face_encoder_hidden_dim": 40, "inject_face_latents_blocks": 1,
    },
    arguments={
        "pose_hidden_states": noise("B latent_channels F+-1 H W"),
        "face_pixel_values": noise("B 3 4*F+-7 motion_encoder_size motion_encoder_size"),
    },
)  # fmt: skip
