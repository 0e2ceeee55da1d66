"""Figures of the noise floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...measure.figure import new_figure, plain, save_drawing
from ...measure.style import INK
from .noise import ErrorSplit

RANDOM, BIAS = "#2f6db5", "#d98a00"
SITES = ("output", "last hidden state", "whole residual")


def plot_floor(sigmas: Sequence[float], features: Mapping[str, Sequence[ErrorSplit]], path: Path) -> None:
    """Random part and bias over sigma, for the output and the two features of the whole stack of blocks.

    Bars are their standard errors: the `uncertainty` of each split.
    """
    figure = new_figure(11, 3.6)
    every = list(figure.subplots(1, len(SITES), squeeze=False)[0])
    plain(every)
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
    save_drawing(figure, path)
