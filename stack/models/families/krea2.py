"""Krea 2: text features of several layers of the text encoder."""

from ..examples.call import noise, sequence
from .base import FamilyData

KREA2 = FamilyData(
    ("Krea2Transformer2DModel",), time_scale=1.0,
    config={"text_hidden_dim": 32},
    arguments={
        "encoder_hidden_states": noise("B T num_text_layers text_hidden_dim"),
        "position_ids": lambda name, call: sequence(call),
    },
)  # fmt: skip
