"""Ideogram 4: text and image in one packed sequence; roles, places and documents are told token by token."""

import torch

from ..examples.call import Call, filled, noise, sequence
from .base import FamilyData


def _roles(name: str, call: Call) -> torch.Tensor:
    """(B, T + N): 3 for text, 2 for the image to make."""
    text = torch.arange(call.size("T+N")) < call.size("T")
    return torch.where(text, 3, 2).expand(call.sizes.batch, -1)


IDEOGRAM4 = FamilyData(
    ("Ideogram4Transformer2DModel",), time_scale=1.0,
    config={"mrope_section": (4, 2, 2)},
    arguments={
        "hidden_states": noise("B T+N C"), "encoder_hidden_states": noise("B T+N llm_features_dim"),
        "indicator": _roles,
        "position_ids": lambda name, call: sequence(call).expand(call.sizes.batch, -1, -1),
        "segment_ids": filled("B T+N", 0, torch.long),
    },
)  # fmt: skip
