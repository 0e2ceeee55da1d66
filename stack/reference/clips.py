"""Procedurally drawn videos: one coloured shape that crosses the canvas, and the captions that ask for it."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..core.errors import StackError
from ..core.validate import shown
from .scenes import BACKGROUNDS, COLOURS, DEFAULT_BACKGROUND, RADIUS, SHAPES, jitter_of, paint, plain_words

DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}  # of motion, (x, y)
FRAMES = 8
REACH = 0.22  # how far from the centre a shape starts and ends, in canvas units: where still pictures have their sides

_GRAMMAR = re.compile(
    rf"^an? ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) moving ({'|'.join(DIRECTIONS)})"
    rf"(?: on (?:a )?({'|'.join(BACKGROUNDS)})(?: background)?)?$"
)


@dataclass(frozen=True)
class Clip:
    """What a video should show."""

    colour: str
    shape: str
    direction: str
    background: str = DEFAULT_BACKGROUND

    def caption(self) -> str:
        """The canonical sentence, always of nine words; `parse_clip(clip.caption()) == clip`."""
        return f"a {self.colour} {self.shape} moving {self.direction} on a {self.background} background"


def parse_clip(caption: str) -> Clip:
    """Read a caption such as "a red ring moving left on a white background".

    Raises:
        StackError: the caption is outside the small language that `shapes-video` knows.
    """
    match = _GRAMMAR.match(plain_words(caption))
    if match is None:
        raise StackError(
            f"cannot read the prompt {shown(caption)}: "
            "expected 'a COLOUR SHAPE moving DIRECTION [on a GROUND background]' "
            f"with colours {', '.join(COLOURS)}; shapes {', '.join(SHAPES)}; directions {', '.join(DIRECTIONS)}; "
            f"grounds {', '.join(BACKGROUNDS)}"
        )
    colour, shape, direction, ground = match.groups()
    return Clip(colour, shape, direction, ground or DEFAULT_BACKGROUND)


def sample_clip(rng: random.Random) -> Clip:
    """Draw a clip: every colour, shape, direction and background is equally likely."""
    choices = (list(COLOURS), SHAPES, list(DIRECTIONS), list(BACKGROUNDS))
    return Clip(*(rng.choice(options) for options in choices))


def draw_clips(
    clips: Sequence[Clip], size: int, rng: random.Random | None = None, frames: Sequence[int] = range(FRAMES)
) -> torch.Tensor:
    """Draw clips on a `size` x `size` canvas: the shape moves evenly from one side over the centre to the other.

    Args:
        rng: jitters radii (by 12 %), speeds (by 15 %) and paths (by 3.5 % of the canvas, along and across).
        frames: which ones; a still part of the motion, or all of it.

    Returns:
        (B, F, 3, size, size) float32 in [-1, 1].
    """
    jitter = jitter_of(rng)
    videos = torch.empty(len(clips), len(frames), 3, size, size)
    # -1 in the first frame, 1 in the last
    passed = torch.tensor([2 * frame / (FRAMES - 1) - 1 for frame in frames])
    for video, clip in zip(videos, clips, strict=True):
        video[:] = torch.tensor(BACKGROUNDS[clip.background])[:, None, None]
        start = torch.tensor((0.5 + jitter(0.035), 0.5 + jitter(0.035)))
        along = REACH * (1 + jitter(0.15)) * torch.tensor(DIRECTIONS[clip.direction])
        paint(video, clip.colour, clip.shape, start + passed[:, None] * along, RADIUS * (1 + jitter(0.12)))
    return videos * 2 - 1
