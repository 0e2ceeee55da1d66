"""grid.png: one line of pictures per row, the same prompts and seeds below each other; of videos, some frames each."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from ..measure.style import FAINT, INK, LINE, PAPER, colour_of, times
from .record import decibels, visible

CELL, GAP, MARGIN, LABEL, HEAD = 148, 8, 20, 224, 58  # pixels


def grid_size(rows: int, columns: int) -> tuple[int, int]:
    """Width and height in pixels."""
    width = 2 * MARGIN + LABEL + columns * CELL + (columns - 1) * GAP
    return width, 2 * MARGIN + HEAD + rows * CELL + (rows - 1) * GAP


def draw_grid(record: Mapping[str, Any], pictures: Mapping[str, torch.Tensor]) -> Image.Image:
    """The grid as an RGB image. A picture that an interruption kept from being made leaves an empty frame."""
    rows = [row for row in visible(record) if row["name"] in pictures]
    columns = max((len(pictures[row["name"]]) for row in rows), default=0)
    sheet = Image.new("RGB", grid_size(len(rows), columns), PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, prompt in enumerate(record["prompts"][:columns]):
        lines = "\n".join(textwrap.wrap(prompt, 22)[:3])
        x = MARGIN + LABEL + column * (CELL + GAP)
        pen.multiline_text((x, MARGIN + HEAD - 10), lines, fill=FAINT, font=font(12), anchor="ld", spacing=3)
    for line, row in enumerate(rows):
        y = MARGIN + HEAD + line * (CELL + GAP)
        _label(pen, row, y)
        for column in range(columns):
            x = MARGIN + LABEL + column * (CELL + GAP)
            if column < len(pictures[row["name"]]):
                sheet.paste(to_image(pictures[row["name"]][column], CELL), (x, y))
            else:
                pen.rectangle((x, y, x + CELL - 1, y + CELL - 1), outline=LINE)
    return sheet


def _label(pen: ImageDraw.ImageDraw, row: Mapping[str, Any], y: int) -> None:
    """Name, speedup and PSNR of a row, left of its pictures."""
    pen.rectangle((MARGIN, y, MARGIN + 4, y + CELL - 1), fill=colour_of(row))
    x, middle = MARGIN + 18, y + CELL // 2
    base = row["role"] == "base"
    head, _, tail = row["name"].partition("@")
    figure = decibels(row["psnr_db"])
    quality = "reference" if base else f"{figure} dB" if figure[0].isdigit() else figure
    lines = [(head, font(15, bold=True), INK)]
    lines += [(f"at the time of {tail}", font(12), FAINT)] if tail else []
    lines += [(times(row["speedup"]), font(24, bold=True), colour_of(row)), (quality, font(15), INK)]
    lines += [(f"{row['full_steps']:.3g} of {row['steps']} steps full", font(12), FAINT)] if row["steps"] else []
    heights = [int(f.size * 1.45) for _, f, _ in lines]
    top = middle - sum(heights) // 2
    for (text, face, colour), height in zip(lines, heights, strict=True):
        pen.text((x, top + height // 2), text, fill=colour, font=face, anchor="lm")
        top += height


def to_image(picture: torch.Tensor, size: int | None = None) -> Image.Image:
    """A (3, H, W) picture in [0, 1] as an RGB image, its longer side scaled to `size` pixels and centred.

    Of a video (F, 3, H, W) four frames from its first to its last, line by line.
    """
    if picture.ndim == 4:
        chosen = picture[torch.linspace(0, len(picture) - 1, 4).round().long()]
        picture = torch.cat([torch.cat(list(pair), -1) for pair in chosen.unflatten(0, (2, 2))], -2)
    values = (picture.nan_to_num().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(values)
    if size is None:
        return image
    scale = size / max(image.size)
    small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (size, size), PAPER)
    square.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
    return square


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, the face that comes with matplotlib: there on every machine."""
    from matplotlib import get_data_path

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / name), size)
