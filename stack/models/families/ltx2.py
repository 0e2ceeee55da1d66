"""LTX-2: video and audio, each with its own text, time and width."""

from ..examples.call import always, filled, level, noise, number
from .base import FamilyData

LTX2 = FamilyData(
    ("LTX2VideoTransformer3DModel",),
    config={"audio_attention_head_dim": 8, "audio_cross_attention_dim": 16},
    arguments={
        "audio_hidden_states": noise("B A audio_in_channels"),
        "audio_encoder_hidden_states": noise("B T caption_channels"),
        "audio_encoder_attention_mask": filled("B T", 1.0),
        "encoder_attention_mask": filled("B T", 1.0),
        "sigma": level, "audio_timestep": level, "fps": always(24.0), "audio_num_frames": number("A"),
    },
)  # fmt: skip
