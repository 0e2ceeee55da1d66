"""The table on screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..measure.style import megabytes, percent, seconds, times
from .record import decibels, visible
from .rows import ALL

_LOOK = {"base": "bold", "alone": "", "left out": "dim", "all": "bold green", "control": "yellow"}
# What a narrow terminal goes without.
_WIDE_ONLY, WIDE = ("by work", "SSIM", "cache"), 104
HEADINGS = ("stack", "time", "speedup", "by work", "PSNR", "SSIM", "accuracy", "full steps", "cache")


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The figures of a row, as `HEADINGS` names them."""
    return (
        row["name"],
        seconds(row["seconds"]),
        times(row["speedup"]),
        times(row["flops_speedup"]),
        decibels(row["psnr_db"]) if row["role"] != "base" else "-",
        "-" if row["ssim"] is None or row["role"] == "base" else f"{row['ssim']:.3f}",
        percent(row["accuracy"]),
        "-" if row["steps"] is None else f"{row['full_steps']:.3g} of {row['steps']}",
        megabytes(row["cache_bytes"]),
    )


def footnotes(record: Mapping[str, Any]) -> list[str]:
    """What the table alone does not say: how the passes go together, and every warning."""
    notes = [
        f"base: {record['base_mode']}, as are the stacks, {record['steps']} steps; medians; "
        "PSNR in dB against its pictures, same seeds"
    ]
    if record["efficiency"] is not None:
        notes.append(f"efficiency {record['efficiency']:.2f}: speedup of all / product of the passes alone")
    if record["interaction_db"] is not None:
        notes.append(f"interaction {record['interaction_db']:+.1f} dB: PSNR lost beyond that of the worst pass alone")
    for row in visible(record):
        if row["psnr_vs_uncached_db"] is not None and row["name"] == ALL and len(row["passes"]) > 1:
            notes.append(f"all against all-cache: {decibels(row['psnr_vs_uncached_db'])} dB, the cache's own error")
    shared = [f"{row['name']} = {row['same_as']}" for row in record["rows"] if row["same_as"]]
    if shared:
        notes.append(f"run the same passes here, measured once: {', '.join(shared)}")
    return notes + verdicts(record) + warnings(record)


def verdicts(record: Mapping[str, Any]) -> list[str]:
    """Each whole stack beside its better control: what it wins or loses against simply taking fewer steps."""
    lines = []
    for row in visible(record):
        rivals = [
            r for r in visible(record) if r["role"] == "control" and r["recipe"] == row["recipe"] and r["speedup"]
        ]
        if row["group"] != "all" or row["psnr_db"] is None or not rivals:
            continue
        best = max(rivals, key=lambda rival: rival["psnr_db"])
        margin = row["psnr_db"] - best["psnr_db"]
        side = "above" if margin >= 0 else "BELOW"
        rival = f"its better control, {best['name']}"
        lines.append(f"{row['name']} is {abs(margin):.1f} dB {side} {rival}: {_point(row)}, {_point(best)}")
    return lines


def _point(row: Mapping[str, Any]) -> str:
    return f"{decibels(row['psnr_db'])} dB at {times(row['speedup'])}"


def warnings(record: Mapping[str, Any]) -> list[str]:
    """All warnings, each with the row it is about."""
    rows = [f"warning, {row['name']}: {text}" for row in visible(record) for text in row["warnings"]]
    return [f"warning: {text}" for text in record["warnings"]] + rows


def print_table(record: Mapping[str, Any], console: Console) -> None:
    """The comparison, one line per row."""
    what = f"{record['model']} on {record['device']}, {record['dtype']}, prompts: {len(record['prompts'])}"
    table = Table(title=what + (" (partial)" if record["partial"] else ""), title_justify="left", title_style="bold")
    kept = [heading for heading in HEADINGS if console.width >= WIDE or heading not in _WIDE_ONLY]
    for heading in kept:
        table.add_column(heading, justify="left" if heading == "stack" else "right", no_wrap=True)
    before = None
    for row in visible(record):
        group = row["group"]
        if before and group != before:
            table.add_section()
        before = group
        figures = dict(zip(HEADINGS, cells(row), strict=True))
        table.add_row(*(Text(figures[heading], style=_LOOK[group]) for heading in kept))
    console.print(table)
    for note in footnotes(record):
        console.print(Text(note, style="yellow" if note.startswith("warning") else "dim"))
