"""Kandinsky 3, a U-Net; 5 and 6: channels last, tokens of one text encoder and the pooled vector of another."""

import torch

from ..examples.call import Call, counted, filled, multiples_of, noise, where
from .base import FamilyData

_VIDEO = where("visual_cond", noise("B F H W 2*C+1"), noise("B F H W C"))


def _places(name: str, call: Call) -> tuple[torch.Tensor, ...]:
    """Numbers of the tokens along frames, rows and columns."""
    sizes = call.sizes
    return tuple(torch.arange(count) for count in (call.frames, sizes.rows, sizes.columns))


KANDINSKY5 = FamilyData(
    ("Kandinsky5Transformer3DModel",),
    arguments={
        "hidden_states": _VIDEO, "pooled_projections": noise("B in_text_dim2"), "visual_rope_pos": _places,
        "text_rope_pos": counted("T"),
    },
)  # fmt: skip
KANDINSKY6 = FamilyData(
    ("Kandinsky6Transformer3DModel",),
    arguments={
        "hidden_states": _VIDEO, "pooled_projections": noise("B in_text_dim2"),
        "audio_hidden_states": noise("B A in_audio_dim"),
    },
)  # fmt: skip
KANDINSKY6_SR = FamilyData(
    ("Kandinsky6SRTransformer3DModel",), arguments={"hidden_states": noise("B F H W 2*C+1")}, fit=multiples_of(8)
)
KANDINSKY3 = FamilyData(
    ("Kandinsky3UNet",), fit=multiples_of(8),
    config={"block_out_channels": (8, 16, 24, 32), "layers_per_block": 2},
    arguments={"encoder_attention_mask": filled("B T", 1, torch.int64)},
)  # fmt: skip
