"""HiDream: experts in the blocks, text features of one layer of a language model for each block."""

from ..examples.call import Call, always, noise
from .base import FamilyData


def _layers(name: str, call: Call) -> list[object]:
    """One (B, T, width) for each of the language model's layers."""
    return [noise("B T caption_channels")(f"{name} {index}", call) for index in range(2)]


HIDREAM = FamilyData(
    ("HiDreamImageTransformer2DModel",),
    published={
        "patch_size": 2, "in_channels": 16, "caption_channels": [4096, 4096], "axes_dims_rope": (64, 32, 32),
        "llama_layers": list(range(48)),
    },
    config={"llama_layers": [0, 1, 0, 1, 1], "max_resolution": (24, 24)},
    arguments={
        "encoder_hidden_states_t5": noise("B T caption_channels"), "encoder_hidden_states_llama3": _layers,
        "pooled_embeds": noise("B text_emb_dim"), "img_ids": always(None),
    },
)  # fmt: skip
