"""Axes, and where names go beside points: plain numbers, so that a plot is tested without drawing it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..grid import font

Box = tuple[float, float, float, float]  # left, top, right, bottom
# Where a name may stand, seen from its point; the first of the best counts.
PLACES = (
    (10, 0), (0, 15), (0, -15), (-10, 0), (9, 12), (9, -12), (-9, 12), (-9, -12), (0, 29), (0, -29), (17, 24),
    (17, -24), (-17, 24), (-17, -24), (30, 12), (30, -12), (-30, 12), (-30, -12), (0, 43), (0, -43), (34, 34),
    (-34, -34),
)  # fmt: skip
NAME, ROUNDS = 100, 4  # how much worse it is to hide a name than a mark; how often each name is placed
FAR = 14  # between a point and its name


@dataclass(frozen=True)
class Axis:
    """Maps values from `low` to `high` onto places from `start` to `end`, which may run backwards."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The place of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """At most `most` round values on the axis, evenly spaced."""
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)][:most]


def axis(values: Sequence[float], start: float, end: float, room: tuple[float, float], least: float) -> Axis:
    """An axis that holds these values, with free room before and after as shares of their range.

    Args:
        least: the range that it has at least.
    """
    low, high = min(values), max(values)
    span = max(least, high - low)
    return Axis(low - room[0] * span, max(high, low + least) + room[1] * span, start, end)


def width_of(text: str, size: int, bold: bool = False) -> float:
    """About how wide a text is, in the units of its size."""
    return float(font(size, bold).getlength(text))


def spread(
    points: Sequence[tuple[float, float]], widths: Sequence[float], frame: Box, size: float, drawn: Sequence[Box] = ()
) -> list[Box]:
    """A box for the name of each point that hides as little as can be of other names, then of points and what is drawn.

    Names are placed one after the other, and then moved where the later ones leave them a better place.
    """
    marks = [(x - 8, y - 8, x + 8, y + 8) for x, y in points]
    choices = [
        [within(place(x + dx, y + dy, width, 1.2 * size, dx), frame) for dx, dy in PLACES]
        for (x, y), width in zip(points, widths, strict=True)
    ]
    alone = [[cost(box, [*drawn, *marks], frame) for box in boxes] for boxes in choices]
    found: dict[int, Box] = {}
    for number in ROUNDS * [*range(len(points))]:
        others = [box for other, box in found.items() if other != number]
        prices = [
            price + NAME * sum(overlap(box, other) for other in others)
            for price, box in zip(alone[number], choices[number], strict=True)
        ]
        found[number] = choices[number][prices.index(min(prices))]
    return [found[number] for number in range(len(points))]


def lead(point: tuple[float, float], box: Box) -> Box | None:
    """The line (x, y, x, y) from a point to its name, where the name is so far that it might be another point's."""
    x, y = min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])
    return (*point, x, y) if math.dist(point, (x, y)) > FAR else None


def place(x: float, y: float, width: float, height: float, side: float) -> Box:
    """Box of a text anchored at (x, y): to the right of it (side > 0), to the left (< 0) or centred (0)."""
    left = x if side > 0 else x - width if side < 0 else x - width / 2
    return left, y - height / 2, left + width, y + height / 2


def within(box: Box, frame: Box) -> Box:
    """A box moved sideways into the frame, as far as it fits."""
    by = max(0.0, frame[0] - box[0]) or -max(0.0, box[2] - frame[2])
    return box[0] + by, box[1], box[2] + by, box[3]


def cost(box: Box, taken: Sequence[Box], frame: Box) -> float:
    """How bad a place is: area shared with what is there already, and far more for leaving the frame."""
    outside = max(0.0, frame[0] - box[0]) + max(0.0, box[2] - frame[2])
    outside += max(0.0, frame[1] - box[1]) + max(0.0, box[3] - frame[3])
    return sum(overlap(box, other) for other in taken) + 100 * outside


def overlap(a: Box, b: Box) -> float:
    """Area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
