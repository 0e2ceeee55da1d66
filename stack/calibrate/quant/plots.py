"""Figures of noise floor and sensitivity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...measure.style import FAINT, INK, LINE

if TYPE_CHECKING:
    from .floor import NoiseFloor
    from .sensitivity import Sensitivity

RANDOM, BIAS = "#2f6db5", "#d98a00"
SITES = ("output", "last hidden state", "whole residual")


def _figure(width: float, height: float, columns: int) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for each in axes:
        each.grid(color=LINE, linewidth=0.7)
        each.set_axisbelow(True)
        each.tick_params(colors=FAINT, labelcolor=INK, labelsize=9)
        for side in ("top", "right"):
            each.spines[side].set_visible(False)
    return figure, list(axes)


def spread_out(heights: Sequence[float], gap: float) -> list[float]:
    """Heights for labels, in the order of these and as near to them from above as `gap` between neighbours allows."""
    placed, last = [0.0] * len(heights), -math.inf
    for index in sorted(range(len(heights)), key=lambda i: heights[i]):
        last = placed[index] = max(heights[index], last + gap)
    return placed


def plot_floor(floor: NoiseFloor, path: Path) -> None:
    """Random part and bias over sigma, for the output and the two features of the whole stack of blocks."""
    figure, every = _figure(11, 3.6, len(SITES))
    for axes, name in zip(every, SITES, strict=True):
        splits = floor.features[name]
        for part, colour in (("random", RANDOM), ("bias", BIAS)):
            values = [100 * getattr(s, part) for s in splits]
            bars = [100 * s.uncertainty for s in splits]
            axes.errorbar(
                floor.sigmas, values, yerr=bars, color=colour, marker="o", markersize=4, label=part, capsize=2
            )
        axes.set_title(name, fontsize=11, color=INK, loc="left")
        axes.set_xlabel("sigma", fontsize=10, color=INK)
        axes.set_ylim(bottom=0)
    every[0].set_ylabel("relative error (%)", fontsize=10, color=INK)
    every[0].legend(frameon=False, fontsize=9)
    figure.savefig(path)


def plot_sensitivity(found: Sensitivity, path: Path) -> None:
    """Each linear's own share of the output error under the reference scheme, and what the sum of squares predicts."""
    layers = found.layers
    figure, (bars, sums) = _figure(12, 0.17 * len(layers) + 1.6, 2)
    errors = [100 * layer.error(found.reference) ** 0.5 for layer in layers]
    bars.barh(range(len(layers)), errors, color=RANDOM)
    bars.set_yticks(range(len(layers)), [layer.path for layer in layers], fontsize=6)
    bars.invert_yaxis()
    bars.set_xlabel(f"relative error of the output, this linear alone in {found.reference} (%)", fontsize=9, color=INK)
    pairs = found.whole
    top = 110 * max(max(pair) for pair in pairs.values())
    sums.plot([0, top], [0, top], color=LINE)
    labels = spread_out([100 * measured for _, measured in pairs.values()], 0.03 * top)
    for (name, (predicted, measured)), height in zip(pairs.items(), labels, strict=True):
        sums.scatter([100 * predicted], [100 * measured], color=BIAS, s=24, zorder=3)
        arrow = {"arrowstyle": "-", "color": LINE}
        place = (100 * predicted + 0.06 * top, height)
        sums.annotate(
            name, (100 * predicted, 100 * measured), place, fontsize=8, color=INK, va="center", arrowprops=arrow
        )
    sums.set_xlabel("predicted: root of the summed squares (%)", fontsize=9, color=INK)
    sums.set_ylabel("measured, every linear in this scheme (%)", fontsize=9, color=INK)
    figure.savefig(path)
