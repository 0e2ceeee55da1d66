"""Figures by matplotlib that look alike: one paper, one style of axes, and small files."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..core.files import whole
from .style import FAINT, INK, LINE, PAPER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = 128  # of a small file: samples of the reference models then keep 44 dB, and paper stays white


def new_figure(width: float, height: float, dpi: int = 120) -> Figure:
    """An empty figure of so many inches, which no window and no backend of the user's has to do with."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(axes: Iterable[Any]) -> None:
    """Axes with a light grid behind what is drawn, and without a frame above and to the right."""
    for one in axes:
        one.grid(color=LINE, linewidth=0.7)
        one.set_axisbelow(True)
        one.tick_params(colors=FAINT, labelcolor=INK, labelsize=9)
        one.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: Path) -> None:
    """Write it as a PNG in all of its colours, whole or not at all."""
    with whole(path) as made:
        figure.savefig(made, format="png")


def save_drawing(figure: Figure, path: Path) -> None:
    """Write a figure of lines, marks and letters as `save_small` does."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    save_small(Image.open(drawn), path)


def save_small(image: Image.Image, path: Path) -> None:
    """Write a picture as a PNG of `COLOURS` colours, a third of the bytes; shades of a heat map would be lost."""
    few = image.convert("RGB").quantize(
        COLOURS, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE
    )  # fmt: skip
    with whole(path) as made:
        few.save(made, "PNG", optimize=True)
