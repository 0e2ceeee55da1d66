"""Where tables are printed."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

UNBOUNDED = 10_000  # columns


def console(piped: int = 120) -> Console:
    """A console as wide as its terminal, or with `piped` columns where its output goes to a file."""
    return Console() if sys.stdout.isatty() else Console(width=piped)


def print_columns(names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under the names of their columns; all but the first column may be folded. See `print_fitting`."""
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold", no_wrap=name == names[0])
    known = list(rows)
    for row in known:
        table.add_row(*row)
    print_fitting(console(), table, names, known)


def print_fitting(place: Console, table: Table, names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, or, where the terminal has no room for it, a paragraph for each row."""
    least = Measurement.get(place, place.options.update(max_width=UNBOUNDED), table).minimum
    if least + len(names) <= place.width:  # rich cuts words where it has no more than the least
        return place.print(table)
    if table.title:
        place.print(table.title, style=table.title_style or "")
    for first, *others in rows:
        cells = zip(names[1:], others, strict=True)
        told = ", ".join(f"{name} {cell}".strip() for name, cell in cells if cell.strip("- "))
        line = textwrap.fill(f"{first}: {told}", place.width, subsequent_indent="    ", break_on_hyphens=False)
        place.print(Text(line))
