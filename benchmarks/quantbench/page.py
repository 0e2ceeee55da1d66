"""The record as Markdown: docs/benchmarks/quantize.md. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cachebench.page import table

Row = Mapping[str, Any]
SHORT = {"error by sigma"}


def page(record: Mapping[str, Any]) -> str:
    """The whole page."""
    machine = record["machine"]
    targets = [[t["name"], f"{t['value']:.3g}", f"{t['op']} {t['target']:g}", "met" if t["met"] else "**missed**"]
               for t in record["targets"]]  # fmt: skip
    parts = [
        "# Quantized linears",
        "Written by `benchmarks/quantize.py`; do not edit.",
        f"{machine['device']}, {machine['threads']} threads. Medians of interleaved rounds; bytes of storages."
        " Models with random weights are there for time and memory alone.",
        "## Linears of one block, bare", rows_table(record["linears"]),
        "## Whole denoisers, one call", rows_table(record["denoisers"]),
        "## Targets", table(["target", "value", "asked", ""], targets),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def rows_table(rows: Sequence[Row]) -> str:
    """All columns but lists."""
    if not rows:
        return "not measured"
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in SHORT]
    return table(keys, [[cell(row.get(key)) for key in keys] for row in rows])


def cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
