"""Helios: frames from before in three resolutions, ahead of the new ones in the sequence."""

from ..examples.call import counted, noise
from .base import FamilyData

HELIOS = FamilyData(
    ("HeliosTransformer3DModel",),
    arguments={
        "indices_hidden_states": counted("B F"),
        "latents_history_short": noise("B C 2 H W"), "indices_latents_history_short": counted("B 2"),
        "latents_history_mid": noise("B C 2 H W"), "indices_latents_history_mid": counted("B 2"),
        "latents_history_long": noise("B C 4 H W"), "indices_latents_history_long": counted("B 4"),
    },
)  # fmt: skip
