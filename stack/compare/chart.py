"""chart.png: speedup against PSNR. Up and to the right is better; a stack must beat the controls at its own time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.files import whole
from ..measure.metrics import CAP_DB
from ..measure.style import FAINT, GROUPS, INK, LINE, colour_of
from .record import visible

MARKS = {"base": "s", "alone": "o", "left out": "o", "all": "D", "control": "^"}
# Where a label may stand, seen from its point in points of type; tried in this order.
PLACES = ((9, 0), (0, 11), (0, -11), (-9, 0), (8, 9), (8, -9), (-8, 9), (-8, -9), (0, 22), (0, -22), (14, 18))


def save_chart(record: Mapping[str, Any], path: Path) -> None:
    """Draw and write the chart; rows without a time or a PSNR are left out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [r for r in visible(record) if r["speedup"] and r["psnr_db"] is not None and r["role"] != "base"]
    figure = Figure(figsize=(9.6, 5.8), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ceiling = top_of([row["psnr_db"] for row in rows])
    _frame(axes, record, rows, ceiling)
    points = [(row["speedup"], min(row["psnr_db"], ceiling)) for row in rows]
    for row, (x, y) in zip(rows, points, strict=True):
        group = row["group"]
        size = 90 if group == "all" else 52
        axes.scatter([x], [y], s=size, marker=MARKS[group], color=colour_of(row), zorder=3, clip_on=False, linewidths=0)
    figure.canvas.draw()
    _label(axes, rows, points)
    with whole(path) as made:
        figure.savefig(made)


def top_of(values: Sequence[float]) -> float:
    """Height at which identical pictures are drawn: somewhat above the best PSNR that is not the cap."""
    finite = [value for value in values if value < CAP_DB]
    return CAP_DB if not finite else min(CAP_DB, max(finite) + 0.12 * max(10.0, max(finite) - min(finite)))


def _frame(axes: Any, record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], ceiling: float) -> None:
    speeds = [row["speedup"] for row in rows] + [1.0]
    levels = [min(row["psnr_db"], ceiling) for row in rows] or [0.0]
    room = max(4.0, max(levels) - min(levels))
    width = max(speeds) - min(speeds) + 0.2
    axes.set_xlim(min(speeds) - 0.12 * width, max(speeds) + 0.2 * width)
    axes.set_ylim(min(levels) - 0.12 * room, max(levels) + 0.1 * room)
    axes.axvline(1.0, color=GROUPS["base"][1], linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    above = axes.get_xaxis_transform()
    axes.text(1.0, 1.015, f"base ({record['base_mode']})", transform=above, ha="center", fontsize=10, color=INK)
    axes.set_xlabel("speedup, measured (times)", fontsize=11, color=INK)
    axes.set_ylabel("PSNR against the base pictures (dB)", fontsize=11, color=INK)
    axes.grid(color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)
    title = f"{record['model']}, {record['steps']} steps, prompts: {len(record['prompts'])}"
    axes.set_title(title + (" (partial)" if record["partial"] else ""), loc="left", fontsize=12, color=INK, pad=26)
    present = [name for name in GROUPS if any(row["group"] == name for row in rows)]
    for name in present:
        axes.scatter([], [], marker=MARKS[name], color=GROUPS[name][1], s=52, label=GROUPS[name][0], linewidths=0)
    if present:
        axes.figure.legend(loc="outside lower center", ncols=len(present), frameon=False, fontsize=10)


def _label(axes: Any, rows: Sequence[Mapping[str, Any]], points: Sequence[tuple[float, float]]) -> None:
    """Put each name where it hides no point and no other name."""
    renderer, pixels = axes.figure.canvas.get_renderer(), axes.figure.dpi / 72
    spots = [axes.transData.transform(point) for point in points]
    taken: list[Box] = [(x - 9, y - 9, x + 9, y + 9) for x, y in spots]
    active_set = axes.get_window_extent(renderer)
    frame = (active_set.x0, active_set.y0 - 30, active_set.x1, active_set.y1 + 20)
    base = axes.transData.transform((1.0, 0.0))[0]
    taken.append((base - 3, active_set.y0, base + 3, active_set.y1))
    for row, (x, y) in zip(rows, spots, strict=True):
        whole = row["group"] == "all"
        name = f"{row['name']} (identical)" if row["psnr_db"] >= CAP_DB else row["name"]
        text = axes.text(x, y, name, fontsize=10, color=INK, fontweight="bold" if whole else "normal", transform=None)
        text.set_verticalalignment("center")
        size = text.get_window_extent(renderer)
        away = pixels * (1.35 if whole else 1.0)  # the large mark needs more room
        boxes = [place(x + dx * away, y + dy * away, size.width, size.height, dx) for dx, dy in PLACES]
        chosen = min(boxes, key=lambda box: cost(box, taken, frame))
        text.set_position((chosen[0], (chosen[1] + chosen[3]) / 2))
        taken.append(chosen)


Box = tuple[float, float, float, float]


def place(x: float, y: float, width: float, height: float, side: float) -> Box:
    """Box of a text anchored at (x, y): to the right of it (side > 0), to the left (< 0) or centred (0)."""
    left = x if side > 0 else x - width if side < 0 else x - width / 2
    return left, y - height / 2, left + width, y + height / 2


def cost(box: Box, taken: Sequence[Box], frame: Box) -> float:
    """How bad a place is: area shared with what is there already, and far more for leaving the frame."""
    outside = max(0.0, frame[0] - box[0]) + max(0.0, box[2] - frame[2])
    outside += max(0.0, frame[1] - box[1]) + max(0.0, box[3] - frame[3])
    return sum(overlap(box, other) for other in taken) + 100 * outside


def overlap(a: Box, b: Box) -> float:
    """Area that two boxes (left, bottom, right, top) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
