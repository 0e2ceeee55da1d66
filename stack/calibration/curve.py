"""The curve of a calibration: PSNR against the number of full steps, as finished pictures measured it on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

HEADINGS = ("full steps", "PSNR", "tried")


@dataclass(frozen=True)
class CurvePoint:
    """The best that was measured at one number of full steps.

    Attributes:
        full: full steps of a picture, on average.
        psnr_db: mean over the pictures of the prompts searched on, against the stack without its cache.
        tried: how many caches with so many full steps were tried: one alone says less than a search.
        chosen: this is what was chosen.
    """

    full: float
    psnr_db: float
    tried: int
    chosen: bool = False


@dataclass
class QualityCurve:
    """Collects what a search measures."""

    _best: dict[float, float] = field(default_factory=dict)
    _tried: dict[float, int] = field(default_factory=dict)

    def add(self, full: float, psnr: float | None) -> None:
        """One cache with so many full steps; None where its pictures were not finished."""
        full = round(full, 3)
        self._tried[full] = self._tried.get(full, 0) + 1
        if psnr is not None:
            self._best[full] = max(psnr, self._best.get(full, psnr))

    def points(self, full: float, psnr: float) -> tuple[CurvePoint, ...]:
        """The points from few to many full steps; the choice has its own PSNR, which need not be the best one's."""
        full = round(full, 3)
        known = {**self._best, full: psnr}
        return tuple(CurvePoint(n, known[n], self._tried.get(n, 1), n == full) for n in sorted(known))


def front(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """The points that no point of fewer full steps reaches: others were placed without a search, or badly."""
    return [point for place, point in enumerate(points) if all(point.psnr_db > p.psnr_db for p in points[:place])]


def cliff(points: Sequence[CurvePoint]) -> tuple[CurvePoint, CurvePoint] | None:
    """The neighbours on the front between which one full step fewer loses most; None where there is one point."""
    falls = pairwise(front(points))
    return max(
        falls, key=lambda pair: (pair[1].psnr_db - pair[0].psnr_db) / (pair[1].full - pair[0].full), default=None
    )


def curve_table(points: Sequence[CurvePoint]) -> str:
    """The points as a table, and where the cliff is."""
    rows = [(f"{p.full:.3g}", f"{p.psnr_db:.1f} dB", str(p.tried), "chosen" if p.chosen else "") for p in points]
    widths = [max(len(row[place]) for row in [HEADINGS, *rows]) for place in range(len(HEADINGS))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=False)) for row in [HEADINGS, *rows]
    ]
    marked = [f"{line}  {row[-1]}".rstrip() for line, row in zip(lines[1:], rows, strict=True)]
    return "\n".join([lines[0], *marked, *_cliff_words(points)])


def _cliff_words(points: Sequence[CurvePoint]) -> list[str]:
    found = cliff(points)
    if found is None:
        return []
    low, high = found
    return [f"steepest: {high.psnr_db - low.psnr_db:.1f} dB lost from {high.full:.3g} to {low.full:.3g} full steps"]
