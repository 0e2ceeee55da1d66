"""The text side of the reference models: a fixed vocabulary and a learned token table."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from .scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, Scene, parse

VOCABULARY = (
    "<pad>", "a", "in", "on", "the", "of", "background", "above", "below",
    *dict.fromkeys([*COLOURS, *SHAPES, *PLACES, *BACKGROUNDS]),
)  # fmt: skip
TEXT_TOKENS = 16
_INDEX = {word: number for number, word in enumerate(VOCABULARY)}


def tokenize(prompts: list[str]) -> torch.Tensor:
    """Token numbers of the captions, (B, 16) int64. Every prompt is brought to its canonical wording first.

    Raises:
        ValueError: a prompt outside the known language (see `stack.reference.scenes.parse`).
    """
    return tokenize_scenes([parse(prompt) for prompt in prompts])


def tokenize_scenes(scenes: list[Scene]) -> torch.Tensor:
    """Token numbers (B, 16) int64 of the scenes' canonical captions."""
    rows = [[_INDEX[word] for word in scene.caption().split()] for scene in scenes]
    return torch.tensor([row + [0] * (TEXT_TOKENS - len(row)) for row in rows])


class PromptEncoder(ModelMixin, ConfigMixin):
    """Token and position tables, plus a pooled vector: what T5 and CLIP are to FLUX.

    Returns from `forward`: token embeddings (B, 16, width) and the pooled vector (B, pooled).
    """

    @register_to_config
    def __init__(self, width: int = 64, pooled: int = 128):
        super().__init__()
        self.words = nn.Embedding(len(VOCABULARY), width)
        # FLUX gives every text token the same rotary position, so the order of words has to be in the embedding.
        self.places = nn.Embedding(TEXT_TOKENS, width)
        self.pool = nn.Linear(TEXT_TOKENS * width, pooled)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedded = self.words(tokens)
        return embedded + self.places.weight, self.pool(embedded.flatten(1))
