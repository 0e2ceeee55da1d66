"""Lumina-Next: a table of complex rotations from the pipeline."""

import torch

from ..examples.call import Call, always, filled
from .base import FamilyData


def _rotary(name: str, call: Call) -> torch.Tensor:
    """(rows, columns, half a head), complex, for grids of up to 24 by 24."""
    turns = torch.randn(24, 24, 8, generator=torch.Generator().manual_seed(1))
    return torch.polar(torch.ones_like(turns), turns)


LUMINA_NEXT = FamilyData(
    ("LuminaNextDiT2DModel",), time_scale=1.0, published={"num_kv_heads": 8},
    arguments={
        "encoder_mask": filled("B T", 1, torch.int64), "image_rotary_emb": _rotary,
        "cross_attention_kwargs": always({}),
    },
)  # fmt: skip
