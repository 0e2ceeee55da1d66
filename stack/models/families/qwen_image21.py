"""Qwen-Image 2.1: the image's tokens stand in the text's sequence, four for each of its image slots."""

import torch

from ..examples.call import Call, multiples_of
from .base import FamilyData


def _slots(name: str, call: Call) -> torch.Tensor:
    """(B, T + N / 4): false for text, true for the slots of the image to make."""
    text, image = call.size("T"), call.size("N") // 4
    return (torch.arange(text + image) >= text).expand(call.sizes.batch, -1)


QWEN_IMAGE_21 = FamilyData(("QwenImage21Transformer2DModel",), arguments={"img_mask": _slots}, fit=multiples_of(2))
