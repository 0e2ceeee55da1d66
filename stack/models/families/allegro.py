"""Allegro: rotary tables of three axes, and each token's place on them, come from the pipeline."""

import torch

from ..examples.call import Call, grid
from .base import FamilyData

Axes = tuple[torch.Tensor, ...]


def _rotary(name: str, call: Call) -> tuple[tuple[Axes, ...], Axes]:
    """Cosines and sines, each (places, a third of a head), for every axis; and (1, N) places along each."""
    turns = torch.randn(64, call.size("attention_head_dim") // 3, generator=torch.Generator().manual_seed(1))
    places = tuple(axis[None].long() for axis in grid(call, 3).T)
    return ((turns.cos(), turns.sin()),) * 3, places


ALLEGRO = FamilyData(
    ("AllegroTransformer3DModel",), config={"attention_head_dim": 12, "cross_attention_dim": 24},
    arguments={"image_rotary_emb": _rotary},
)  # fmt: skip
