"""Speedup against median PSNR, with quartiles: caches by who made them, both controls as curves, the Pareto front."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curves import pareto_front
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stack.comparison.report.axes import PLACES, Box, cost, place
from stack.comparison.report.plots import top_of
from stack.measure.style import FAINT, INK, LINE

from .targets import CACHES, CONTROLS, curve, measured

COLOURS = {
    "ours": "#b3263a", "preset": "#2f6db5", "published": "#8a8f98", "papers": "#7a4fa3", "cache-dit": "#d98a00",
    "diffusers": "#3d8f5f",
}  # fmt: skip
WORDS = {
    "ours": "ours, calibrated", "preset": "our defaults", "published": "as published", "papers": "papers rebuilt",
    "cache-dit": "cache-dit", "diffusers": "diffusers",
}  # fmt: skip
MARKS = {"ours": "D", "preset": "o", "published": "X", "papers": "v", "cache-dit": "s", "diffusers": "^"}
STYLES = {"euler": (0, (4, 3)), "second order": "solid"}


def draw(lines: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draw and write the plot; rows without a time are left out."""
    caches = [line for line in measured(lines) if line["group"] in CACHES]
    if not caches:
        return
    figure = Figure(figsize=(10.5, 6.8), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ceiling = top_of([line["median"] for line in caches])
    _controls(axes, lines)
    for group in COLOURS:
        own = [line for line in caches if kind_of(line) == group]
        points = [(line["speedup"], min(line["median"], ceiling)) for line in own]
        if points:
            size, (speeds, levels) = 60 if group == "ours" else 26, zip(*points, strict=True)
            axes.scatter(
                speeds, levels, s=size, marker=MARKS[group], color=COLOURS[group], label=WORDS[group], zorder=3,
                linewidths=0,
            )  # fmt: skip
            spread = [quartiles(line.get("each", [line["median"]]), ceiling) for line in own]  # old records have none
            axes.vlines(speeds, *zip(*spread, strict=True), color=COLOURS[group], alpha=0.35, linewidth=1, zorder=2)
    front = pareto_front([(line["speedup"], min(line["median"], ceiling)) for line in caches])
    corners = [(caches[i]["speedup"], min(caches[i]["median"], ceiling)) for i in front]
    axes.plot(*zip(*corners, strict=True), color=INK, alpha=0.25, linewidth=5, zorder=1, label="Pareto front")
    seen = [
        p for groups in CONTROLS.values() for p in curve(lines, groups) if p[0] <= max(speed for speed, _ in corners)
    ] + [(1.0, line["median"]) for line in measured(lines) if line["group"] == "rounding"]
    _frame(axes, [(line["speedup"], min(line["median"], ceiling)) for line in caches] + seen, title)
    figure.canvas.draw()
    _label(axes, caches, {*front}, ceiling)
    figure.savefig(path)


def quartiles(each: Sequence[float], ceiling: float) -> tuple[float, float]:
    """Between which half of the pictures lie."""
    low, _, high = statistics.quantiles(each, n=4) if len(each) > 1 else 3 * [*each]
    return min(low, ceiling), min(high, ceiling)


def kind_of(line: dict[str, Any]) -> str:
    """A cache's group, that of papers' own readings told apart from our defaults."""
    return "published" if line["group"] == "preset" and "-published" in line["family"] else line["group"]


def _controls(axes: Any, lines: Sequence[dict[str, Any]]) -> None:
    for name, groups in CONTROLS.items():
        points = curve(lines, groups)
        if points:
            searched = " (searched)" if any(line["group"] == "searched" for line in lines) and len(groups) > 1 else ""
            label = f"fewer steps, {name}{searched}"
            axes.plot(
                *zip(*points, strict=True), color=FAINT, linestyle=STYLES[name], linewidth=1.2, label=label, zorder=2
            )
    for line in measured(lines):
        if line["group"] == "rounding":
            axes.axhline(line["median"], color=FAINT, linestyle=":", linewidth=1.2, label="rounding: the base in fp32")


def _frame(axes: Any, points: Sequence[tuple[float, float]], title: str) -> None:
    speeds, levels = zip(*points, strict=True)
    axes.set_xscale("log")
    axes.set_xlim(min(0.95, 0.97 * min(speeds)), max(speeds) * 1.25)
    ticks = [tick for tick in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if tick <= max(speeds) * 1.25]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(min(levels) - 2, max(levels) + 2)
    axes.set_xlabel("speedup, measured (times)", fontsize=11, color=INK)
    axes.set_ylabel("median PSNR against the base (dB)", fontsize=11, color=INK)
    axes.set_title(title, loc="left", fontsize=12, color=INK)
    axes.grid(color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=10)


def labelled(caches: Sequence[dict[str, Any]], front: set[int]) -> list[int]:
    """The rows that are named: calibrated ones, the front, and of each other family its best over the controls."""
    best: dict[tuple[str, str], tuple[int, float]] = {}
    for i, line in enumerate(caches):
        key, margin = (line["group"], line["family"]), line["over controls"]
        value = line["median"] if margin is None else margin
        if key not in best or value > best[key][1]:
            best[key] = (i, value)
    named = front | {i for i, line in enumerate(caches) if line["group"] == "ours"}
    return sorted(named | {i for i, _ in best.values()})


def short(name: str) -> str:
    """A row's name without what its colour or the table tells."""
    return name.split(" (best of")[0].replace("calibrated, ", "calibrated ").replace("diffusers ", "")


def _label(axes: Any, caches: Sequence[dict[str, Any]], front: set[int], ceiling: float) -> None:
    """Names where they hide no point and no other name."""
    renderer = axes.figure.canvas.get_renderer()
    spots = [axes.transData.transform((line["speedup"], min(line["median"], ceiling))) for line in caches]
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in spots]
    extent = axes.get_window_extent(renderer)
    frame = (extent.x0, extent.y0, extent.x1, extent.y1)
    for i in labelled(caches, front):
        (x, y), line = spots[i], caches[i]
        bold = "bold" if line["group"] == "ours" else "normal"
        text = axes.text(x, y, short(line["row"]), fontsize=7.5, color=COLOURS[kind_of(line)], fontweight=bold)
        text.set(transform=None, verticalalignment="center")
        size = text.get_window_extent(renderer)
        boxes = [place(x + dx * 1.6, y + dy * 1.6, size.width, size.height, dx) for dx, dy in PLACES]
        chosen = min(boxes, key=lambda box: cost(box, taken, frame))
        text.set_position((chosen[0], (chosen[1] + chosen[3]) / 2))
        taken.append(chosen)
