"""The text side of the reference models: a fixed vocabulary and a learned token table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from .clips import DIRECTIONS
from .scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, Scene, parse


@dataclass(frozen=True)
class Vocabulary:
    """The words of one language of captions, numbered in order; the first one fills short captions up.

    Attributes:
        length: tokens of every caption.
    """

    words: tuple[str, ...]
    length: int

    def tokens(self, captions: Sequence[str]) -> torch.Tensor:
        """Token numbers (B, length) int64 of canonical captions."""
        rows = [[self.words.index(word) for word in caption.split()] for caption in captions]
        return torch.tensor([row + [0] * (self.length - len(row)) for row in rows])


# The shipped word tables are rows of these: words keep their numbers.
STILLS = Vocabulary(
    (
        "<pad>", "a", "in", "on", "the", "of", "background", "above", "below",
        *dict.fromkeys([*COLOURS, *SHAPES, *PLACES, *BACKGROUNDS]),
    ),
    length=16,
)  # fmt: skip
VIDEOS = Vocabulary(
    ("<pad>", "a", "moving", "on", "background", *dict.fromkeys([*COLOURS, *SHAPES, *DIRECTIONS, *BACKGROUNDS])),
    length=9,
)


def tokenize(prompts: list[str]) -> torch.Tensor:
    """Token numbers of the captions, (B, 16) int64. Every prompt is brought to its canonical wording first.

    Raises:
        StackError: a prompt outside the known language (see `stack.reference.scenes.parse`).
    """
    return tokenize_scenes([parse(prompt) for prompt in prompts])


def tokenize_scenes(scenes: list[Scene]) -> torch.Tensor:
    """Token numbers (B, 16) int64 of the scenes' canonical captions."""
    return STILLS.tokens([scene.caption() for scene in scenes])


class PromptEncoder(ModelMixin, ConfigMixin):
    """Token and position tables, plus a pooled vector: what T5 and CLIP are to FLUX.

    Returns from `forward`: token embeddings (B, length, width) and the pooled vector (B, pooled).
    """

    @register_to_config
    def __init__(
        self, width: int = 64, pooled: int = 128, vocabulary: int = len(STILLS.words), length: int = STILLS.length
    ):
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        # FLUX gives every text token the same rotary position, HunyuanVideo none at all: the order of words has to be
        # in the embedding.
        self.places = nn.Embedding(length, width)
        self.pool = nn.Linear(length * width, pooled)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedded = self.words(tokens)
        return embedded + self.places.weight, self.pool(embedded.flatten(1))
