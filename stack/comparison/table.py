"""The table on screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..measure.style import megabytes, percent, seconds, times
from .console import print_fitting
from .record import decibels, visible
from .rows import ALL
from .verdict import margins, verdict

_LOOK = {"base": "bold", "alone": "", "left out": "dim", "all": "bold green", "peer": "cyan", "control": "yellow"}
# What a terminal of fewer columns than `WIDE`, and of fewer than `MIDDLE`, goes without; below that also intervals.
_WIDE_ONLY, WIDE = ("by work", "SSIM", "cache", "memory"), 140
_MIDDLE_ONLY, MIDDLE = ("time",), 100
HEADINGS = (
    "stack", "time", "speedup", "by work", "PSNR", "same time", "SSIM", "accuracy", "full steps", "cache", "memory",
)  # fmt: skip


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The figures of a row, as `HEADINGS` names them."""
    return (
        row["name"],
        seconds(row["seconds"]),
        times(row["speedup"]) + _give(row["speedup"], row["speedup_95"], 2),
        times(row["flops_speedup"]),
        decibels(row["psnr_db"]) + _give(row["psnr_db"], row["psnr_db_95"], 1) if row["role"] != "base" else "-",
        decibels(row["control_psnr_db"]),
        "-" if row["ssim"] is None or row["role"] == "base" else f"{row['ssim']:.3f}",
        percent(row["accuracy"]),
        "-" if row["steps"] is None else f"{row['full_steps']:.3g} of {row['steps']}",
        megabytes(row["cache_bytes"]),
        megabytes(row["peak_bytes"]),
    )


def _give(figure: float | None, interval: Sequence[float] | None, digits: int) -> str:
    """Half the width of a 95 % interval, behind its figure; a question mark where it is wider than the figure."""
    if figure is None or interval is None:
        return ""
    half = (interval[1] - interval[0]) / 2
    return f" ±{half:.{digits}f}" if half < figure else " ±?"


def markdown(record: Mapping[str, Any]) -> str:
    """The verdict and the table, to paste where markdown is read."""
    lines = [HEADINGS, ("---", *["---:"] * (len(HEADINGS) - 1)), *map(cells, visible(record))]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{title(record)}. **Verdict:** {verdict(record)}.\n\n{table}\n\n{footnotes(record)[0]}\n"


def title(record: Mapping[str, Any]) -> str:
    """What was measured, on what."""
    what = f"{record['model']} on {record['device']}, {record['dtype']}, prompts: {len(record['prompts'])}"
    return what + (" (partial)" if record["partial"] else "")


def footnotes(record: Mapping[str, Any]) -> list[str]:
    """What the table alone does not say: how the passes go together, and every warning."""
    notes = [
        f"base: {record['base_mode']}, as are the stacks, {record['steps']} steps; medians; "
        "PSNR in dB against its pictures, same seeds; same time: PSNR of the base with as many steps as fit in it"
    ]
    if any(row["psnr_db_95"] for row in record["rows"]):
        notes.append("±: half of a 95 % interval over the prompts (Student's t); ±? is more than the figure itself")
    if record["efficiency"] is not None:
        notes.append(f"efficiency {record['efficiency']:.2f}: speedup of all / product of the passes alone")
    if record["interaction_db"] is not None:
        notes.append(f"interaction {record['interaction_db']:+.1f} dB: PSNR lost beyond that of the worst pass alone")
    for row in visible(record):
        if row["psnr_vs_uncached_db"] is not None and row["name"] == ALL and len(row["passes"]) > 1:
            notes.append(f"all against all-cache: {decibels(row['psnr_vs_uncached_db'])} dB, the cache's own error")
    shared = [f"{row['name']} = {row['same_as']}" for row in record["rows"] if row["same_as"] and row["passes"]]
    if shared:
        notes.append(f"run the same passes here, measured once: {', '.join(shared)}")
    for pair in record["pairs"]:
        if pair["efficiency"] is not None and pair["interaction_db"] is not None and len(record["pairs"]) > 1:
            notes.append(
                f"{' and '.join(pair['passes'])} together: {pair['efficiency']:.2f} of the product of their speedups, "
                f"{pair['interaction_db']:+.1f} dB lost beyond the worse of them"
            )
    return notes + margins(record) + warnings(record)


def warnings(record: Mapping[str, Any]) -> list[str]:
    """All warnings, each with the row it is about."""
    rows = [f"warning, {row['name']}: {text}" for row in visible(record) for text in row["warnings"]]
    return [f"warning: {text}" for text in record["warnings"]] + rows


def print_table(record: Mapping[str, Any], console: Console) -> None:
    """The verdict, then one line per row, then what the table alone does not say."""
    console.print(Text(verdict(record), style="bold"))
    narrow = console.width < MIDDLE
    table = Table(
        title=title(record), title_justify="left", title_style="bold", show_edge=not narrow, pad_edge=not narrow
    )
    left_out = (_WIDE_ONLY if console.width < WIDE else ()) + (_MIDDLE_ONLY if narrow else ())
    kept = [heading for heading in HEADINGS if heading not in left_out]
    for heading in kept:
        table.add_column(heading, justify="left" if heading == "stack" else "right", no_wrap=True)
    before, lines = None, []
    for row in visible(record):
        group = row["group"]
        if before and group != before:
            table.add_section()
        before = group
        figures = dict(zip(HEADINGS, cells(row), strict=True))
        lines.append([figures[heading].split(" ±")[0] if narrow else figures[heading] for heading in kept])
        table.add_row(*(Text(text, style=_LOOK[group]) for text in lines[-1]))
    print_fitting(console, table, kept, lines)
    for note in footnotes(record):
        console.print(Text(note, style="yellow" if note.startswith("warning") else "dim"))
