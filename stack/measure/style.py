"""Colours and words shared by table, grid, chart and report. Dark on white; distinct without colour vision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INK, FAINT, LINE, PAPER = "#1f2328", "#6b7280", "#d8dce2", "#ffffff"
GROUPS = {
    "base": ("the model as it is", "#1f2328"),
    "alone": ("one pass alone", "#2f6db5"),
    "left out": ("all but one pass", "#6f97c8"),
    "all": ("whole stack", "#b3263a"),
    "peer": ("cache of another library", "#2a8f6d"),
    "control": ("control: fewer steps", "#b36b00"),
}
STEPS = {"full": "#2f6db5", "cached": "#dbe6f3", "partial": "#84a9d6"}


def colour_of(row: Mapping[str, Any]) -> str:
    """The colour of a row's group."""
    return GROUPS[row["group"]][1]


def times(value: float | None) -> str:
    """A factor for reading: "2.31x"."""
    return "-" if value is None else f"{value:.2f}x"


def megabytes(value: float | None) -> str:
    """Bytes for reading: "12.3 MB"; "-" for none."""
    return "-" if not value else f"{value / 1e6:,.1f} MB"


def percent(value: float | None) -> str:
    """A share for reading: "97 %"."""
    return "-" if value is None else f"{value:.0%}".replace("%", " %")


def seconds(value: float | None) -> str:
    """A time for reading: "1.23 s"."""
    return "-" if value is None else f"{value:.2f} s"
