"""Reads pictures back: a small convolutional net, trained on drawn scenes, that names what a picture shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from .scenes import BACKGROUNDS, COLOURS, LAYOUTS, SHAPES, Scene

NOTHING = "nothing"
# The questions put to every picture, each with its possible answers. "Second" is absent in a scene with one shape.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "background": tuple(BACKGROUNDS),
    "layout": tuple(LAYOUTS),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "second colour": (*COLOURS, NOTHING),
    "second shape": (*SHAPES, NOTHING),
}
Answers = Mapping[str, str]  # by question
SIZE = 32  # pictures are resized to this before they are read


def asked(scene: Scene) -> dict[str, str]:
    """The right answer to each question about a scene."""
    (colour, shape), *rest = scene.items
    second = rest[0] if rest else (NOTHING, NOTHING)
    answers = (scene.background, scene.layout, colour, shape, *second)
    return dict(zip(ATTRIBUTES, answers, strict=True))


def labels(scenes: list[Scene]) -> torch.Tensor:
    """Answer numbers (B, questions) int64."""
    rows = [[ATTRIBUTES[name].index(value) for name, value in asked(scene).items()] for scene in scenes]
    return torch.tensor(rows)


class SceneClassifier(ModelMixin, ConfigMixin):
    """Four strided convolutions and one linear head per question.

    `forward` takes pictures (B, 3, H, W) in [-1, 1] and returns one logit tensor (B, answers) per question.
    """

    @register_to_config
    def __init__(self, width: int = 32):
        super().__init__()
        widths = [3, width, 2 * width, 4 * width, 4 * width]
        layers: list[nn.Module] = []
        for below, above in pairwise(widths):
            layers += [nn.Conv2d(below, above, 3, stride=2, padding=1), nn.GroupNorm(8, above), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.heads = nn.ModuleList(nn.Linear(4 * width * (SIZE // 16) ** 2, len(a)) for a in ATTRIBUTES.values())

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """The vector the heads read, (B, 16 * width)."""
        small = F.interpolate(pictures.float(), (SIZE, SIZE), mode="area") if pictures.shape[-1] != SIZE else pictures
        return self.body(small)

    def forward(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        features = self.features(pictures)
        return [head(features) for head in self.heads]

    @torch.no_grad()
    def read(self, pictures: torch.Tensor) -> list[dict[str, str]]:
        """What each picture shows, by question."""
        answers = torch.stack([logits.argmax(1) for logits in self(pictures)], 1).tolist()
        return [{name: values[i] for (name, values), i in zip(ATTRIBUTES.items(), row, strict=True)} for row in answers]

    def accuracy(self, pictures: torch.Tensor, scenes: Sequence[Scene], questions: Iterable[str] = ATTRIBUTES) -> float:
        """Share of right answers to these questions, over all pictures (B, 3, H, W) in [-1, 1]. In [0, 1]."""
        return share_right(self.read(pictures), [asked(scene) for scene in scenes], questions)


def share_right(seen: Sequence[Answers], answers: Sequence[Answers], questions: Iterable[str]) -> float:
    """Share of what was seen that agrees with the right answers, over all questions. In [0, 1]."""
    names = list(questions)
    found = [a[name] == b[name] for a, b in zip(seen, answers, strict=True) for name in names]
    return sum(found) / len(found)
