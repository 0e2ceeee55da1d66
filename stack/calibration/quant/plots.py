"""Figures of the noise floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.files import whole
from ...measure.style import FAINT, INK, LINE
from .noise import ErrorSplit

RANDOM, BIAS = "#2f6db5", "#d98a00"
SITES = ("output", "last hidden state", "whole residual")


def _figure(width: float, height: float, columns: int) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for plot in axes:
        plot.grid(color=LINE, linewidth=0.7)
        plot.set_axisbelow(True)
        plot.tick_params(colors=FAINT, labelcolor=INK, labelsize=9)
        for side in ("top", "right"):
            plot.spines[side].set_visible(False)
    return figure, list(axes)


def plot_floor(sigmas: Sequence[float], features: Mapping[str, Sequence[ErrorSplit]], path: Path) -> None:
    """Random part and bias over sigma, for the output and the two features of the whole stack of blocks."""
    figure, every = _figure(11, 3.6, len(SITES))
    for axes, name in zip(every, SITES, strict=True):
        splits = features[name]
        for part, colour in (("random", RANDOM), ("bias", BIAS)):
            values = [100 * getattr(s, part) for s in splits]
            bars = [100 * s.uncertainty for s in splits]
            axes.errorbar(sigmas, values, yerr=bars, color=colour, marker="o", markersize=4, label=part, capsize=2)
        axes.set_title(name, fontsize=11, color=INK, loc="left")
        axes.set_xlabel("sigma", fontsize=10, color=INK)
        axes.set_ylim(bottom=0)
    every[0].set_ylabel("relative error (%)", fontsize=10, color=INK)
    every[0].legend(frameon=False, fontsize=9)
    with whole(path) as made:
        figure.savefig(made)
