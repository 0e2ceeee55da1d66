"""Cosmos: from 2.5 on, the text and an image's features go in as a pair."""

import torch

from ..examples.call import Call, Rule, noise, where
from .base import FamilyData

_TEXT = where("use_crossattn_projection", noise("B T crossattn_proj_in_channels"), noise("B T text_embed_dim"))
_IMAGE: Rule = noise("B img_context_num_tokens img_context_dim_in")


def _contexts(name: str, call: Call) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """(B, T, width), and (B, tokens, width) where the model has attention to an image."""
    text: torch.Tensor = _TEXT(name, call)
    return (text, _IMAGE("image", call)) if call.config["img_context_dim_in"] else text


COSMOS = FamilyData(
    ("CosmosTransformer3DModel",),
    config={"concat_padding_mask": False, "img_context_dim_out": 32},  # resizing a mask needs torchvision
    arguments={"encoder_hidden_states": _contexts},
)
