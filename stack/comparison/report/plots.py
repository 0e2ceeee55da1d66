"""The two plots: speed against PSNR with its Pareto front, and the cache's error over the noise level."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...measure.metrics import CAP_DB
from ..record import visible
from .axes import Axis, Box, axis, lead, spread, width_of

SIZE = 13  # of the letters
WIDE, NARROW = (680, 440), (340, 340)  # of a plot on a desktop and on a phone: letters keep their size
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 24, 46  # room around the axes


@dataclass(frozen=True)
class PlottedRow:
    """A row: where it is, and where its name stands.

    Attributes:
        row: its entry of the record.
        lead: the line (x, y, x, y) to a name that stands far away.
        bars: the lines (x, y, x, y) of its 95 % intervals of speedup and PSNR, as far as they are inside the axes.
    """

    row: Mapping[str, Any]
    x: float
    y: float
    label: str
    box: Box
    lead: Box | None
    bars: list[Box]


@dataclass(frozen=True)
class SpeedPlot:
    """A plot ready to be written as SVG; places in its own units."""

    size: tuple[int, int]
    x: Axis
    y: Axis
    points: list[PlottedRow]
    front: list[PlottedRow]


def speed_plot(record: Mapping[str, Any], size: tuple[int, int] = WIDE) -> SpeedPlot | None:
    """Speedup to the right, PSNR in dB upwards. None where no row but the base has both."""
    rows = [r for r in visible(record) if r["speedup"] and r["psnr_db"] is not None and r["role"] != "base"]
    if not rows:
        return None
    top = top_of([row["psnr_db"] for row in rows])
    levels = [min(row["psnr_db"], top) for row in rows]
    x, y = _frame([row["speedup"] for row in rows] + [1.0], levels, size)
    places = [(x.at(row["speedup"]), y.at(level)) for row, level in zip(rows, levels, strict=True)]
    names = [f"{row['name']} (identical)" if row["psnr_db"] >= CAP_DB else row["name"] for row in rows]
    best = front([(row["speedup"], level) for row, level in zip(rows, levels, strict=True)])
    bars = [_bars(row, place, x, y, size) for row, place in zip(rows, places, strict=True)]
    lines = [(x.at(1.0) - 2, TOP, x.at(1.0) + 2, size[1] - BOTTOM), *along([places[number] for number in best])]
    lines += [(a - 1, b - 1, c + 1, d + 1) for each in bars for a, b, c, d in each]
    boxes = spread(places, [width_of(name, SIZE, True) for name in names], _inside(size), SIZE, lines)
    made = zip(rows, places, names, boxes, bars, strict=True)
    points = [PlottedRow(row, *at, name, box, lead(at, box), lines) for row, at, name, box, lines in made]
    return SpeedPlot(size, x, y, points, [points[number] for number in best])


def _bars(row: Mapping[str, Any], place: tuple[float, float], x: Axis, y: Axis, size: tuple[int, int]) -> list[Box]:
    found, (at, level) = [], place
    if row.get("speedup_95"):  # records of a single prompt have none
        left, right = (min(max(x.at(bound), LEFT), size[0] - RIGHT) for bound in row["speedup_95"])
        found.append((left, level, right, level))
    if row.get("psnr_db_95"):
        low, high = (min(max(y.at(bound), TOP), size[1] - BOTTOM) for bound in row["psnr_db_95"])
        found.append((at, high, at, low))
    return found


def along(places: Sequence[tuple[float, float]], every: int = 16) -> list[Box]:
    """Small boxes on the line through these places, so that no name is put across it."""
    pairs = itertools.pairwise(places)
    dots = [(a + (c - a) * n / every, b + (d - b) * n / every) for (a, b), (c, d) in pairs for n in range(every + 1)]
    return [(x - 3, y - 3, x + 3, y + 3) for x, y in dots]


def top_of(values: Sequence[float]) -> float:
    """Height at which identical pictures are drawn: somewhat above the best PSNR that is not the cap."""
    finite = [value for value in values if value < CAP_DB]
    return CAP_DB if not finite else min(CAP_DB, max(finite) + 0.12 * max(10.0, max(finite) - min(finite)))


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Those that no other point beats in one figure without losing in the other, from left to right."""
    best, kept = float("-inf"), []
    for number in sorted(range(len(points)), key=lambda n: points[n], reverse=True):
        if points[number][1] > best:
            best = points[number][1]
            kept.append(number)
    return kept[::-1]


def _frame(xs: Sequence[float], ys: Sequence[float], size: tuple[int, int]) -> tuple[Axis, Axis]:
    width, height = size
    return (
        axis(xs, LEFT, width - RIGHT, (0.08, 0.16), 0.2),
        axis(ys, height - BOTTOM, TOP, (0.1, 0.08), 4.0),
    )


def _inside(size: tuple[int, int]) -> Box:
    return LEFT + 2, TOP, size[0] - 2, size[1] - BOTTOM - 2


@dataclass(frozen=True)
class Curve:
    """The errors of one row: at (noise level, relative error), from much noise to little, and their places."""

    row: Mapping[str, Any]
    values: list[tuple[float, float]]
    places: list[tuple[float, float]]


@dataclass(frozen=True)
class ErrorPlot:
    """The plot of errors."""

    size: tuple[int, int]
    x: Axis
    y: Axis
    curves: list[Curve]


def error_plot(record: Mapping[str, Any], size: tuple[int, int] = WIDE) -> ErrorPlot | None:
    """Relative error of each cache's prediction, over the noise level it was measured at, which falls to the right.

    It is measured where a full step ends a run of cached ones. None where no row has such a step.
    """
    measured = [(row, errors_of(row)) for row in visible(record)]
    rows = [(row, values) for row, values in measured if values]
    if not rows:
        return None
    width, height = size[0], round(0.7 * size[1])
    sigmas = [sigma for _, values in rows for sigma, _ in values]
    x = Axis(0.0, max(1.0, *sigmas), width - RIGHT, LEFT)
    y = axis([0.0, *(error for _, values in rows for _, error in values)], height - BOTTOM, TOP, (0.0, 0.1), 0.001)
    curves = [Curve(row, values, [(x.at(s), y.at(e)) for s, e in values]) for row, values in rows]
    return ErrorPlot((width, height), x, y, curves)


def errors_of(row: Mapping[str, Any]) -> list[tuple[float, float]]:
    """(Noise level, relative error) of the steps of a row that have both."""
    pairs = zip(row["sigmas"], row["errors"], strict=True)
    return [(sigma, error) for sigma, error in pairs if sigma is not None and error is not None]
