"""Reads videos back: the reader of pictures for what stands there, the way of the shape for where it moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from .classifier import SceneClassifier, share_right
from .clips import DIRECTIONS, Clip

STILL = "nowhere"  # the direction of what moves by less than a pixel of a 32-pixel canvas
_APPEARANCE = ("colour", "shape", "background")


def direction_of(video: torch.Tensor) -> str:
    """Where the shape in a video (F, 3, H, W) moves: the main direction from its first place to its last.

    A place is the centre of what stands out: every pixel weighs as much as its colour is away from the border's median
    colour, less half of the largest such distance, which leaves noise out.
    """
    border = torch.cat([video[..., 0, :], video[..., -1, :], video[..., 0], video[..., -1]], -1)
    ground = border.median(-1).values[..., None, None]
    distance = (video - ground).square().sum(1).sqrt()
    weight = (distance - distance.amax((1, 2), keepdim=True) / 2).clamp(min=0)
    weight = weight / weight.sum((1, 2), keepdim=True).clamp(min=1e-6)
    axis = (torch.arange(video.shape[-1], device=video.device) + 0.5) / video.shape[-1]
    places = torch.stack([(weight * axis).sum((1, 2)), (weight * axis[:, None]).sum((1, 2))], 1)
    moved = places[-1] - places[0]
    if moved.abs().max() < 1 / 32:
        return STILL
    return max(DIRECTIONS, key=lambda name: float(moved @ torch.tensor(DIRECTIONS[name], device=video.device)))


class ClipReader:
    """Names what videos show.

    Attributes:
        pictures: reads single frames; the answer most frames give holds.
    """

    def __init__(self, pictures: SceneClassifier):
        self.pictures = pictures

    def read(self, videos: torch.Tensor) -> list[dict[str, str]]:
        """What each video (B, F, 3, H, W) in [-1, 1] shows, by question."""
        frames = self.pictures.read(videos.flatten(0, 1))
        found = []
        for number, video in enumerate(videos):
            seen = frames[number * len(video) : (number + 1) * len(video)]
            answers = {name: Counter(frame[name] for frame in seen).most_common(1)[0][0] for name in _APPEARANCE}
            found.append({**answers, "direction": direction_of(video)})
        return found

    def accuracy(self, videos: torch.Tensor, clips: Sequence[Clip], questions: Iterable[str]) -> float:
        """Share of right answers to these questions, over all videos (B, F, 3, H, W) in [-1, 1]. In [0, 1]."""
        return share_right(self.read(videos), [clip_answers(clip) for clip in clips], questions)


def clip_answers(clip: Clip) -> dict[str, Any]:
    """The right answer to each question about a clip."""
    return asdict(clip)
