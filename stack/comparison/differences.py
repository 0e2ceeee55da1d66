"""Whether one row of a comparison is faster than another, or nearer to the base, as far as its prompts can tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .intervals import psnr_gain_interval, ratio_interval

# Two rows count as equally fast, or equally good, within these: the repeatability of timing on a quiet machine, and a
# difference that nobody sees in a picture.
SAME_TIME, SAME_DB = 0.02, 0.1
# What would be worth having, if only the prompts were enough to be sure of it.
LARGE_TIME, LARGE_DB = 0.1, 1.0

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """A gain in time (by how much its factor is above 1) or in dB, positive where the first row is better.

    Attributes:
        interval: 95 % interval over the prompts that both rows have; None with fewer than two.
        same: differences up to this are none.
        large: differences beyond this would be worth having.
    """

    value: float
    interval: tuple[float, float] | None
    same: float
    large: float

    @property
    def sign(self) -> int:
        """1 for a gain, -1 for a loss, 0 where there is none or the interval holds 0: then it may be chance."""
        low, high = self.interval or (self.value, self.value)
        return int(self.value > self.same and low > 0) - int(self.value < -self.same and high < 0)

    @property
    def unclear(self) -> bool:
        """Whether it would be a large gain, but may be chance: more prompts would tell."""
        return self.value > self.large and self.sign == 0


def time_gain(row: Figures, other: Figures) -> Difference:
    """By how much a row is faster than another: 0.5 where the other takes 1.5 times as long. Both have a time."""
    factor = other["seconds"] / row["seconds"]
    found = ratio_interval(factor, other.get("seconds_all", ()), row.get("seconds_all", ()))
    bounds = (found[0] - 1, found[1] - 1) if found else None
    return Difference(factor - 1, bounds, SAME_TIME, LARGE_TIME)


def psnr_gain(row: Figures, other: Figures) -> Difference:
    """By how many dB a row is nearer to the base than another. Both have a PSNR."""
    gain = row["psnr_db"] - other["psnr_db"]
    found = psnr_gain_interval(gain, row.get("psnr_db_each", ()), other.get("psnr_db_each", ()))
    return Difference(gain, (found[0], found[1]) if found else None, SAME_DB, LARGE_DB)


def saved_time(row: Figures) -> Difference:
    """By how much a row is faster than the base. It has a speedup."""
    found = row.get("speedup_95")
    bounds = (found[0] - 1, found[1] - 1) if found else None
    return Difference(row["speedup"] - 1, bounds, SAME_TIME, LARGE_TIME)
