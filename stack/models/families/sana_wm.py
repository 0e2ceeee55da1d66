"""SANA-WM: linear and softmax attention in turn, and a time per frame; its refiner is an LTX-2 without sound."""

import torch

from ..examples.call import Call, filled, noise, rotary
from .base import FamilyData


def _times(name: str, call: Call) -> torch.Tensor:
    return torch.full((call.sizes.batch, 1, call.frames), 1000 * call.sizes.noise)


SANA_WM = FamilyData(
    ("SanaWMTransformer3DModel",),
    config={"softmax_every_n": 3},
    arguments={
        "timestep": _times, "encoder_hidden_states": noise("B 1 T caption_channels"),
        "encoder_attention_mask": filled("B T", 1, torch.int64),
        "chunk_plucker": noise("B chunk_plucker_channels F H W"),
    },
)  # fmt: skip
SANA_WM_REFINER = FamilyData(
    ("SanaWMLTX2RefinerTransformer3DModel",),
    arguments={"video_rotary_emb": rotary("1 N cross_attention_dim"), "encoder_attention_mask": filled("B T", 1.0)},
)
