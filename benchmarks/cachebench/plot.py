"""Speed against median PSNR: numbered points and their key, both controls as curves, the Pareto front."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stack.comparison.report.axes import Box, lead, spread
from stack.comparison.report.plots import along, front, top_of
from stack.measure.figure import new_figure, plain, save_drawing
from stack.measure.style import FAINT, INK, PAPER

from .targets import CACHES, CONTROLS, curve, measured

Line = dict[str, Any]
# Filled marks are this library's own methods and settings, hollow ones those of papers and other libraries.
KINDS = {
    "ours": ("own: calibrated", "#b3263a", "D"),
    "solver": ("own: solver", "#1f2328", "*"),
    "preset": ("own: defaults", "#2f6db5", "o"),
    "published": ("as published", "#6b7280", "o"),
    "papers": ("papers rebuilt", "#7a4fa3", "v"),
    "cache-dit": ("cache-dit", "#a86a00", "s"),
    "diffusers": ("diffusers", "#2f7a4c", "^"),
}
OWN = ("ours", "solver", "preset")
SIZES = {"ours": 60, "solver": 80}
STYLES = {"euler": (0, (4, 3)), "second order": "solid"}
LETTERS, KEY_LETTERS = 7, 7.5  # points: of numbers, of the key
KEY_LINES = 46  # that fit into the figure's height


def draw(lines: Sequence[Line], title: str, path: Path) -> None:
    """Draw and write the plot; rows without a time are left out."""
    figure = drawn(lines, title)
    if figure is not None:
        save_drawing(figure, path)


def drawn(lines: Sequence[Line], title: str) -> Any:
    """The figure, its names placed; None without a cache that was timed."""
    rows = [line for line in measured(lines) if line["group"] in (*CACHES, "solver")]
    if not any(line["group"] in CACHES for line in rows):
        return None
    figure = new_figure(11.5, 6.8, dpi=110)
    axes, key = figure.subplots(1, 2, width_ratios=[3.4, 1])
    plain([axes])
    ceiling = top_of([line["median"] for line in rows])
    points = [(line["speedup"], min(line["median"], ceiling)) for line in rows]
    _controls(axes, lines)
    _marks(axes, rows, points, ceiling)
    best = front(points)
    corners = [points[i] for i in best]
    axes.plot(*zip(*corners, strict=True), color=INK, alpha=0.25, linewidth=5, zorder=1, label="Pareto front")
    beside = [p for groups in CONTROLS.values() for p in curve(lines, groups) if p[0] <= max(s for s, _ in corners)]
    floor = [(1.0, line["median"]) for line in measured(lines) if line["group"] == "rounding"]
    _frame(axes, [*points, *beside, *floor], title)
    numbers = numbered(rows, {*best})
    _key(key, rows, numbers)
    figure.canvas.draw()
    _numbers(axes, rows, points, numbers, corners)
    return figure


def quartiles(each: Sequence[float], ceiling: float) -> tuple[float, float]:
    """Between which half of the pictures lie."""
    low, _, high = statistics.quantiles(each, n=4) if len(each) > 1 else 3 * [*each]
    return min(low, ceiling), min(high, ceiling)


def kind_of(line: Line) -> str:
    """A row's group, that of papers' own readings told apart from the library's defaults."""
    return "published" if line["group"] == "preset" and "-published" in line["family"] else str(line["group"])


def numbered(rows: Sequence[Line], best: set[int]) -> dict[int, int]:
    """Numbers of the rows that have one, in the order of the key: kind by kind, the slowest first.

    These are the calibrated ones, the front, and of each other family its best over the controls.
    """
    found: dict[tuple[str, str], tuple[int, float]] = {}
    for i, line in enumerate(rows):
        family, margin = (line["group"], line["family"]), line["over controls"]
        value = line["median"] if margin is None else margin
        if family not in found or value > found[family][1]:
            found[family] = (i, value)
    chosen = best | {i for i, line in enumerate(rows) if line["group"] == "ours"} | {i for i, _ in found.values()}
    order = sorted(chosen, key=lambda i: ([*KINDS].index(kind_of(rows[i])), rows[i]["speedup"]))
    return {i: number for number, i in enumerate(order, 1)}


def short(line: Line) -> str:
    """A row's name without what its mark or the table tells."""
    name = line["row"].split(" (best of")[0].replace("calibrated, ", "calibrated ").replace("diffusers ", "")
    return str(name.replace("-published", "").replace(" of its threshold", " threshold"))


def _marks(axes: Any, rows: Sequence[Line], points: Sequence[tuple[float, float]], ceiling: float) -> None:
    for kind, (_, colour, _) in KINDS.items():
        own = [i for i, line in enumerate(rows) if kind_of(line) == kind]
        if own:
            speeds, levels = zip(*(points[i] for i in own), strict=True)
            axes.scatter(speeds, levels, **_mark(kind), zorder=3)
            halves = [quartiles(rows[i].get("each", [rows[i]["median"]]), ceiling) for i in own]  # old records: none
            axes.vlines(speeds, *zip(*halves, strict=True), color=colour, alpha=0.3, linewidth=1, zorder=2)
    axes.vlines([], [], [], color=FAINT, linewidth=1, label="bar: half of the pictures")


def _mark(kind: str) -> dict[str, Any]:
    """How points of a kind are drawn."""
    _, colour, mark = KINDS[kind]
    filled = kind in OWN
    return {
        "marker": mark, "s": SIZES.get(kind, 26), "facecolors": colour if filled else PAPER, "edgecolors": colour,
        "linewidths": 0.0 if filled else 1.1,
    }  # fmt: skip


def _controls(axes: Any, lines: Sequence[Line]) -> None:
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
    axes.set_xlim(min(0.95, 0.97 * min(speeds)), max(speeds) * 1.08)
    ticks = [tick for tick in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if tick <= max(speeds) * 1.08]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(min(levels) - 2, max(levels) + 2)
    axes.set_xlabel("speedup, measured (times)", fontsize=11, color=INK)
    axes.set_ylabel("median PSNR against the base (dB)", fontsize=11, color=INK)
    axes.set_title(title, loc="left", fontsize=12, color=INK)
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=5, frameon=False, fontsize=8)


def _key(axes: Any, rows: Sequence[Line], numbers: dict[int, int]) -> None:
    """Number and name of each point that has one, below the mark of its kind."""
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(KEY_LINES, 0))
    kinds = dict.fromkeys(kind_of(rows[i]) for i in numbers)
    at = 0.5
    for kind in kinds:
        words, colour, _ = KINDS[kind]
        axes.scatter([0.03], [at], **_mark(kind), clip_on=False)
        axes.text(0.1, at, words, color=colour, fontsize=KEY_LETTERS + 0.5, weight="bold", va="center")
        for i, number in numbers.items():
            if kind_of(rows[i]) == kind:
                at += 1
                axes.text(0.06, at, str(number), color=colour, fontsize=KEY_LETTERS, ha="right", va="center")
                axes.text(0.1, at, short(rows[i]), color=INK, fontsize=KEY_LETTERS, va="center")
        at += 1.3


def _numbers(
    axes: Any,
    rows: Sequence[Line],
    points: Sequence[tuple[float, float]],
    numbers: dict[int, int],
    corners: Sequence[tuple[float, float]],
) -> None:
    """Numbers where they hide no point and no other number; one that is far from its point has a line to it."""
    spots = [tuple(axes.transData.transform(point)) for point in points]
    size = LETTERS * axes.figure.dpi / 72
    others: list[Box] = [(x - 4, y - 4, x + 4, y + 4) for i, (x, y) in enumerate(spots) if i not in numbers]
    others += along([tuple(axes.transData.transform(corner)) for corner in corners])
    extent = axes.get_window_extent()
    widths = [0.66 * size * len(str(number)) for number in numbers.values()]
    boxes = spread([spots[i] for i in numbers], widths, (extent.x0, extent.y0, extent.x1, extent.y1), size, others)
    back = axes.transData.inverted()
    for (i, number), (left, low, right, high) in zip(numbers.items(), boxes, strict=True):
        colour, middle = KINDS[kind_of(rows[i])][1], ((left + right) / 2, (low + high) / 2)
        if lead(spots[i], (left, low, right, high)):
            axes.plot(*zip(points[i], back.transform(middle), strict=True), color=colour, linewidth=0.5, zorder=2)
        axes.text(
            *back.transform(middle), str(number), fontsize=LETTERS, color=colour, ha="center", va="center",
            weight="bold", gid="number", zorder=4,
        )  # fmt: skip
