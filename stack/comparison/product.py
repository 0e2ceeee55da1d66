"""product.png: what each pass multiplies the speed by, alone and in the whole stack, above the pictures it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..measure.figure import new_figure, save_figure
from ..measure.style import FAINT, GROUPS, INK, LINE, PAPER
from .contributions import factors
from .grid import to_image
from .record import decibels
from .rows import ALL, BASE

SHADES = ("#2f6db5", "#b36b00", "#b3263a", "#4b7f52", "#6b4ea0", "#1f2328")
MOST_PICTURES, SIDE = 8, 192  # side of a picture in pixels
NARROW = 0.25  # of a bar's part, in natural logarithms
Rows = Mapping[str, Mapping[str, Any]]


def save_product(record: Mapping[str, Any], pictures: Mapping[str, torch.Tensor], path: Path) -> bool:
    """Draw and write it; False where the record has no whole stack of several passes."""
    rows = {row["name"]: row for row in record["rows"]}
    found = factors(rows)
    shown = [name for name in (BASE, ALL) if name in pictures]
    if found is None or len(found) < 2 or not shown:
        return False
    figure = new_figure(9.6, 4.9)
    grid = figure.add_gridspec(1 + len(shown), 1, height_ratios=[2.0, *[1.0] * len(shown)])
    _bars(figure.add_subplot(grid[0]), rows, found)
    for line, name in enumerate(shown, 1):
        _strip(figure.add_subplot(grid[line]), rows[name], pictures[name][:MOST_PICTURES])
    save_figure(figure, path)
    return True


def _bars(axes: Any, rows: Rows, found: Mapping[str, float]) -> None:
    """Two bars on a logarithmic axis, on which factors add: passes alone, multiplied, and in the whole stack."""
    alone = {stage: rows[stage]["speedup"] for stage in found}
    for line, bar in enumerate((alone, found)):
        at = 1.0
        for shade, (stage, factor) in zip(SHADES, bar.items(), strict=False):
            start, stop = sorted((at, at * factor))
            axes.barh(line, stop - start, left=start, height=0.62, color=shade, alpha=0.6 if line == 0 else 1.0)
            if abs(math.log(factor)) < NARROW:  # its label does not fit inside
                axes.text(start, line - 0.36, f"{stage} {factor:.2f}x", ha="left", va="bottom", color=shade, fontsize=9)
            else:
                inside = {"ha": "center", "va": "center", "color": PAPER, "fontsize": 9}
                axes.text(math.sqrt(start * stop), line, f"{stage}\n{factor:.2f}x", **inside)
            at *= factor
        axes.text(at * 1.03, line, f"{at:.2f}x", ha="left", va="center", color=INK, fontsize=12, weight="bold")
    product = math.prod(alone.values())
    axes.set_xscale("log")
    axes.set_xlim(1.0, 1.35 * max(product, rows[ALL]["speedup"]))
    axes.set_yticks([0, 1], ["alone, multiplied", "together, measured"], fontsize=10, color=INK)
    axes.invert_yaxis()
    ticks = [n for n in (1, 2, 3, 5, 10, 20, 50) if n <= 1.35 * product]
    axes.set_xticks(ticks, [f"{n}x" for n in ticks], color=FAINT)
    axes.minorticks_off()
    axes.grid(axis="x", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _strip(axes: Any, row: Mapping[str, Any], pictures: torch.Tensor) -> None:
    """A row's pictures side by side."""
    gap = np.full((SIDE, 8, 3), 255, dtype=np.uint8)
    parts = [part for one in pictures for part in (np.asarray(to_image(one, SIDE)), gap)]
    axes.imshow(np.concatenate(parts[:-1], 1))
    base = row["role"] == "base"
    figure = decibels(row["psnr_db"])
    quality = "the model as it is" if base else f"{figure} dB" if figure[0].isdigit() else figure
    words = f"{row['name']}\n{row['seconds']:.1f} s\n{quality}"
    axes.set_ylabel(words, rotation=0, ha="right", va="center", fontsize=10, color=GROUPS["base" if base else "all"][1])
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
