"""MiniMax-Music 3: channels before time, and a condition for every frame."""

from ..examples.call import noise
from .base import FamilyData

MINIMAX_MUSIC3 = FamilyData(
    ("MiniMaxMusic3Transformer1DModel",), time_scale=1.0, config={"rotary_dim": 8},
    arguments={"hidden_states": noise("B C N"), "encoder_hidden_states": noise("B N condition_dim")},
)  # fmt: skip
