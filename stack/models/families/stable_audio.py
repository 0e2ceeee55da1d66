"""Stable Audio: channels before time, and the length of the sound as a token or as memory."""

from ..examples.call import always, noise, rotary
from .base import FamilyData

STABLE_AUDIO = FamilyData(
    ("StableAudioDiTModel",), time_scale=1.0,
    config={"num_key_value_attention_heads": 2, "cross_attention_dim": 32, "cross_attention_input_dim": 40},
    arguments={
        "encoder_hidden_states": noise("B T cross_attention_input_dim"), "rotary_embedding": rotary("1+N 8"),
        "global_hidden_states": noise("B 1 global_states_input_dim"), "encoder_attention_mask": always(None),
    },
)  # fmt: skip
STABLE_AUDIO_3 = FamilyData(
    ("StableAudio3DiTModel",), time_scale=1.0,
    config={"num_memory_tokens": 4},
    arguments={
        "encoder_hidden_states": noise("B T cond_token_dim"), "global_hidden_states": noise("B global_cond_dim"),
        "local_add_cond": noise("B local_add_cond_dim N"),
    },
)  # fmt: skip
