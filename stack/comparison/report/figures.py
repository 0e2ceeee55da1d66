"""Figures with the entry of the record that each is read from: the page carries both, a test compares them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...measure.style import megabytes, seconds
from ..contributions import TOGETHER
from ..record import decibels
from ..table import HEADINGS, cells

# Entry of a row behind each column of the table.
ENTRIES = {
    "time": "seconds",
    "speedup": "speedup",
    "by work": "flops_speedup",
    "PSNR": "psnr_db",
    "SSIM": "ssim",
    "accuracy": "accuracy",
    "full steps": "full_steps",
    "cache": "cache_bytes",
}


ROUNDING = 1e-12  # a squared error below it is what adding up leaves behind


@dataclass(frozen=True)
class Figure:
    """A figure for reading.

    Attributes:
        source: where it stands in the record, such as "rows.all.speedup"; "" for words.
        value: the entry itself, unrounded.
    """

    source: str
    value: Any
    text: str


@dataclass(frozen=True)
class Part:
    """A piece of a bar: from `start`, `width` wide, in hundredths of the bar."""

    name: str
    mark: str
    start: float
    width: float
    figure: Figure


@dataclass(frozen=True)
class Columns:
    """A table: the headings of its columns, and by row of the record the figures below all headings but the first."""

    headings: Sequence[str]
    lines: list[tuple[Mapping[str, Any], list[Figure]]]


def results_table(rows: Sequence[Mapping[str, Any]]) -> Columns:
    """The table that the command prints."""
    return Columns(HEADINGS, [(row, _line(row)) for row in rows])


def quality_table(rows: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]]) -> Columns:
    """Every row by every measure of quality of the record; an arrow says which way is better."""
    arrows = {"higher": "\N{UPWARDS ARROW}", "lower": "\N{DOWNWARDS ARROW}"}
    titles = [f"{metric['title']} {arrows[metric['better']]}" for metric in metrics]
    lines = [(row, [_judged(row, metric["name"]) for metric in metrics]) for row in rows]
    return Columns(("stack", *titles), lines)


def _line(row: Mapping[str, Any]) -> list[Figure]:
    named = zip(HEADINGS[1:], cells(row)[1:], strict=True)
    return [of_row(row, ENTRIES[name], text) if name in ENTRIES else Figure("", None, text) for name, text in named]


def _judged(row: Mapping[str, Any], name: str) -> Figure:
    inside = name in row["quality"]
    value = row["quality"][name] if inside else row.get(name)
    source = f"rows.{row['name']}.{'quality.' if inside else ''}{name}"
    text = decibels(value) if name == "psnr_db" else "-" if value is None else f"{value:.4g}"
    return Figure(source, value, text)


def of_row(row: Mapping[str, Any], entry: str, text: str) -> Figure:
    """A figure of a row."""
    return Figure(f"rows.{row['name']}.{entry}", row[entry], text)


def time_bar(record: Mapping[str, Any]) -> list[Part]:
    """Seconds of the base: what the whole stack still takes, then what each pass saves. None are below 0."""
    whole = next(row for row in record["rows"] if row["name"] == "all")
    left = ("whole stack", "all", of_row(whole, "seconds", seconds(whole["seconds"])))
    saved = _shares(record, "seconds_saved", saved_words)
    return _stacked([left, *saved])


def error_bar(record: Mapping[str, Any]) -> list[Part]:
    """Squared error of the whole stack, by the pass that adds it."""
    return _stacked(_shares(record, "squared_error", lambda value: f"{value:.1e}" if abs(value) > ROUNDING else "0"))


def saved_words(value: float) -> str:
    """Seconds saved, or lost where they are below 0."""
    return f"{abs(value):.2f} s {'lost' if value < -0.005 else 'saved'}"


def _shares(record: Mapping[str, Any], entry: str, words: Callable[[float], str]) -> list[tuple[str, str, Figure]]:
    found = []
    for number, share in enumerate(record["contributions"]):
        name, value = share["pass"], share[entry]
        mark = "faint" if name == TOGETHER else f"share-{number % 4}"
        found.append((name, mark, Figure(f"contributions.{name}.{entry}", value, words(value))))
    return found


def _stacked(parts: Sequence[tuple[str, str, Figure]]) -> list[Part]:
    """Side by side and as wide as their values; what is below 0 has no width, and says so by its figure."""
    total = sum(max(0.0, figure.value) for _, _, figure in parts) or 1.0
    start, placed = 0.0, []
    for name, mark, figure in parts:
        width = 100 * max(0.0, figure.value) / total
        placed.append(Part(name, mark, start, width, figure))
        start += width
    return placed


def memory_bars(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], float, Figure, Figure]]:
    """By row with a measured peak: width in hundredths of the largest, the peak, and the cache's own share of it."""
    known = [row for row in rows if row["peak_bytes"] is not None]
    most = max((row["peak_bytes"] for row in known), default=1)
    return [
        (
            row,
            100 * row["peak_bytes"] / most,
            of_row(row, "peak_bytes", megabytes(row["peak_bytes"])),
            of_row(row, "cache_bytes", megabytes(row["cache_bytes"])),
        )
        for row in known
    ]
