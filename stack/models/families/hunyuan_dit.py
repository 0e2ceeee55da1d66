"""Hunyuan-DiT: long skips from the first half of the blocks to the second, and two text encoders."""

import torch

from ..examples.call import filled, noise, rotary
from .base import FamilyData

HUNYUAN_DIT = FamilyData(
    ("HunyuanDiT2DModel",),
    published={"in_channels": 4, "patch_size": 2, "hidden_size": 1408},
    config={"num_layers": 4, "text_len": 5, "text_len_t5": 7, "cross_attention_dim": 40},
    arguments={
        "encoder_hidden_states": noise("B text_len cross_attention_dim"),
        "text_embedding_mask": filled("B text_len", 1, torch.int64),
        "encoder_hidden_states_t5": noise("B text_len_t5 cross_attention_dim_t5"),
        "text_embedding_mask_t5": filled("B text_len_t5", 1, torch.int64), "image_meta_size": filled("B 6", 64.0),
        "style": filled("B", 0, torch.int64), "image_rotary_emb": rotary("N attention_head_dim"),
    },
)  # fmt: skip
