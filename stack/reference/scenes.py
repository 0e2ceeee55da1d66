"""Procedurally drawn scenes: one or two coloured shapes, and the captions that ask for them.

A scene is small enough that a model of a few million parameters learns it on a CPU, and rich enough that a
wrong picture can be told from a right one: shape, colour, position and background are all asked for by name.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..core.errors import StackError
from ..core.validate import shown

SHAPES = ("circle", "square", "triangle", "ring", "star")
COLOURS = {
    "red": (0.90, 0.18, 0.16),
    "green": (0.16, 0.70, 0.28),
    "blue": (0.18, 0.38, 0.95),
    "yellow": (0.98, 0.84, 0.16),
    "purple": (0.64, 0.24, 0.80),
    "cyan": (0.22, 0.82, 0.88),
}
BACKGROUNDS = {
    "black": (0.05, 0.05, 0.07),
    "white": (0.96, 0.96, 0.94),
    "grey": (0.52, 0.52, 0.52),
    "navy": (0.08, 0.10, 0.30),
}
DEFAULT_BACKGROUND = "black"

RADIUS = 0.215  # of a shape, in canvas units

# Where a lone shape may stand, and how two shapes may stand to each other: centres in canvas units, (x, y) each.
PLACES = {
    "center": ((0.5, 0.5),),
    "left": ((0.28, 0.5),),
    "right": ((0.72, 0.5),),
    "top": ((0.5, 0.28),),
    "bottom": ((0.5, 0.72),),
}
PAIRS = {"left of": ((0.27, 0.5), (0.73, 0.5)), "above": ((0.5, 0.27), (0.5, 0.73))}
LAYOUTS = {**PLACES, **PAIRS}
_MIRRORED = {"right of": "left of", "below": "above"}

_ITEM = rf"an? ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_GRAMMAR = re.compile(
    rf"^{_ITEM}"
    rf"(?: (?:(?:in|on|at) the ({'|'.join(PLACES)})|({'|'.join([*PAIRS, *_MIRRORED])}) {_ITEM}))?"
    rf"(?: on (?:a )?({'|'.join(BACKGROUNDS)})(?: background)?)?$"
)


@dataclass(frozen=True)
class Scene:
    """What a picture should show: `items` are (colour, shape), ordered left to right or top to bottom."""

    items: tuple[tuple[str, str], ...]
    layout: str
    background: str = DEFAULT_BACKGROUND

    def caption(self) -> str:
        """The canonical sentence; `parse(scene.caption()) == scene`."""
        first, *rest = (f"a {colour} {shape}" for colour, shape in self.items)
        where = f" {self.layout} {rest[0]}" if rest else f" in the {self.layout}"
        ground = "" if self.background == DEFAULT_BACKGROUND else f" on a {self.background} background"
        return first + where + ground


def plain_words(prompt: object) -> str:
    """A prompt in small letters, one space between words, without its full stop; "" for what is no text."""
    return " ".join(prompt.lower().strip().rstrip(".").split()) if isinstance(prompt, str) else ""


def parse(caption: str) -> Scene:
    """Read a caption such as "a red ring left of a blue star on a white background".

    Raises:
        StackError: the caption is outside the small language the reference models know.
    """
    match = _GRAMMAR.match(plain_words(caption))
    if match is None:
        raise StackError(
            f"cannot read the prompt {shown(caption)}: "
            "expected 'a COLOUR SHAPE [in the PLACE | RELATION a COLOUR SHAPE] "
            f"[on a GROUND background]' with colours {', '.join(COLOURS)}; shapes {', '.join(SHAPES)}; "
            f"places {', '.join(PLACES)}; relations left of, right of, above, below; grounds {', '.join(BACKGROUNDS)}"
        )
    colour, shape, place, relation, colour2, shape2, ground = match.groups()
    items: tuple[tuple[str, str], ...] = ((colour, shape),)
    if relation:
        items += ((colour2, shape2),)
        if relation in _MIRRORED:
            items, relation = items[::-1], _MIRRORED[relation]
    return Scene(items, relation or place or "center", ground or DEFAULT_BACKGROUND)


def sample(rng: random.Random) -> Scene:
    """Draw a scene: 60 % of them hold two shapes, whose colours differ so that the two can be told apart."""
    background = rng.choice(list(BACKGROUNDS))
    if rng.random() < 0.4:
        return Scene(((rng.choice(list(COLOURS)), rng.choice(SHAPES)),), rng.choice(list(PLACES)), background)
    colours = rng.sample(list(COLOURS), 2)
    items = tuple((colour, rng.choice(SHAPES)) for colour in colours)
    return Scene(items, rng.choice(list(PAIRS)), background)


def _distance(shape: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Signed distance to the outline of a shape of radius 1 (negative inside), good enough near the outline."""
    r = torch.sqrt(x * x + y * y)
    if shape == "circle":
        return r - 0.95
    if shape == "ring":
        return (r - 0.74).abs() - 0.26
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.84
    if shape == "triangle":
        return torch.maximum(0.894 * x.abs() - 0.447 * y - 0.447, y - 0.80)
    # A five-pointed star: fold the plane into one tenth of it, then measure to the edge between tip and notch.
    sector = torch.pi / 5
    angle = torch.remainder(torch.atan2(x, -y) + sector, 2 * sector) - sector
    px, py = r * torch.cos(angle), r * torch.sin(angle).abs()
    notch = torch.tensor(0.47)
    tip_x, notch_x, notch_y = 1.08, notch * torch.cos(torch.tensor(sector)), notch * torch.sin(torch.tensor(sector))
    normal_x, normal_y = notch_y, tip_x - notch_x
    return ((px - tip_x) * normal_x + py * normal_y) / torch.sqrt(normal_x**2 + normal_y**2)


def draw(scenes: list[Scene], size: int, rng: random.Random | None = None) -> torch.Tensor:
    """Draw scenes on a `size` x `size` canvas with soft edges.

    Args:
        rng: jitters centres (by 3.5 % of the canvas) and radii (by 12 %); without it every shape stands exactly.

    Returns:
        (B, 3, size, size) float32 in [-1, 1].
    """
    jitter = jitter_of(rng)
    pictures = torch.empty(len(scenes), 3, size, size)
    for picture, scene in zip(pictures, scenes, strict=True):
        picture[:] = torch.tensor(BACKGROUNDS[scene.background])[:, None, None]
        for (colour, shape), (x, y) in zip(scene.items, LAYOUTS[scene.layout], strict=True):
            radius = RADIUS * (1 + jitter(0.12))
            centre = torch.tensor((x + jitter(0.035), y + jitter(0.035)))
            paint(picture, colour, shape, centre, radius)
    return pictures * 2 - 1


def jitter_of(rng: random.Random | None) -> Callable[[float], float]:
    """Random numbers in [-width, width]; always 0 without a source of them."""
    return (lambda width: rng.uniform(-width, width)) if rng else (lambda width: 0.0)


def paint(canvas: torch.Tensor, colour: str, shape: str, centre: torch.Tensor, radius: float) -> None:
    """Paint a shape with soft edges onto what is there, in place.

    Args:
        canvas: (..., 3, size, size) in [0, 1].
        centre: (..., 2), x and y in canvas units; one for each picture.
        radius: in canvas units.
    """
    size = canvas.shape[-1]
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    yy, xx = torch.meshgrid(axis, axis, indexing="ij")
    cx, cy = centre[..., None, None].unbind(-3)
    cover = (0.5 - _distance(shape, (xx - cx) / radius, (yy - cy) / radius) * radius * size).clamp(0, 1)
    canvas += cover.unsqueeze(-3) * (torch.tensor(COLOURS[colour])[:, None, None] - canvas)
