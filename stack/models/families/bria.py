"""Bria FIBO: text features of a language model's layers go into the blocks."""

import torch

from ..examples.call import Call, Rule, noise
from .base import FamilyData


def _layers(name: str, call: Call) -> list[object]:
    """One (B, T, width) per block."""
    count = call.size("num_layers+num_single_layers")
    return [noise("B T text_encoder_dim")(f"{name} {index}", call) for index in range(count)]


def _bundles(name: str, call: Call) -> torch.Tensor:
    """(B, 1 + injected blocks, T, width)."""
    count = 1 + len(call.config["injection_layer_ids"])
    rule: Rule = noise(f"B {count} T cap_feat_dim")
    return rule(name, call)


FIBO = FamilyData(("BriaFiboTransformer2DModel",), arguments={"text_encoder_layers": _layers})
FIBO2 = FamilyData(("BriaFibo2Transformer2DModel",), time_scale=1.0, arguments={"encoder_hidden_states": _bundles})
