"""Pictures and videos inside the page, as data URIs: a video is one picture of all its frames, which a script walks."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..grid import to_image

LARGEST = 512  # pixels of a picture's longer side
LARGEST_FRAME, MOST_FRAMES = 256, 64  # of a video
MOST_BYTES = 12_000_000  # of all pictures together: prompts beyond it are left to grid.png


@dataclass(frozen=True)
class Sheet:
    """A picture, or a video's frames line by line.

    Attributes:
        data: a data URI of a PNG, without loss beyond the scaling to `LARGEST` pixels.
        columns, lines: how the frames lie; 1 x 1 for a picture.
        frames: how many there are.
        width, height: of one frame in pixels.
    """

    data: str
    columns: int
    lines: int
    frames: int
    width: int
    height: int


def sheet_of(picture: torch.Tensor) -> Sheet:
    """A picture (3, H, W) or video (F, 3, H, W) in [0, 1], scaled down where it is large; at most 64 frames, evenly."""
    frames = picture if picture.ndim == 4 else picture[None]
    if len(frames) > MOST_FRAMES:
        frames = frames[torch.linspace(0, len(frames) - 1, MOST_FRAMES).round().long()]
    images = [_scaled(to_image(frame), LARGEST if picture.ndim == 3 else LARGEST_FRAME) for frame in frames]
    width, height = images[0].size
    columns = math.ceil(math.sqrt(len(images)))
    lines = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * width, lines * height))
    for number, image in enumerate(images):
        sheet.paste(image, (number % columns * width, number // columns * height))
    stream = io.BytesIO()
    sheet.save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    return Sheet(f"data:image/png;base64,{data}", columns, lines, len(images), width, height)


def _scaled(image: Image.Image, most: int) -> Image.Image:
    scale = min(1.0, most / max(image.size))
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class PromptPictures:
    """The pictures of one prompt, by row."""

    prompt: str
    rows: list[tuple[Mapping[str, Any], Sheet]]


def scenes(
    prompts: Sequence[str], rows: Sequence[Mapping[str, Any]], pictures: Mapping[str, torch.Tensor]
) -> list[PromptPictures]:
    """Prompt after prompt, as many as fit; the first always."""
    found: list[PromptPictures] = []
    size = 0
    for number, prompt in enumerate(prompts):
        made = [
            (row, sheet_of(pictures[row["name"]][number]))
            for row in rows
            if row["name"] in pictures and number < len(pictures[row["name"]])
        ]
        size += sum(len(sheet.data) for _, sheet in made)
        if not made or (found and size > MOST_BYTES):
            break
        found.append(PromptPictures(prompt, made))
    return found
