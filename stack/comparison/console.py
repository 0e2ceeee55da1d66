"""Where tables are printed."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

GAP = 3  # columns between two of a table


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


def print_fitting(place: Console, table: Table, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, or, where the terminal has no room for it, a paragraph for each row."""
    if _least(table, names, rows) <= place.width:
        return place.print(table)
    if table.title:
        place.print(table.title, style=table.title_style or "")
    for first, *others in rows:
        cells = zip(names[1:], others, strict=True)
        told = ", ".join(f"{name} {cell}".strip() for name, cell in cells if cell.strip("- "))
        line = textwrap.fill(f"{first}: {told}", place.width, subsequent_indent="    ", break_on_hyphens=False)
        place.print(Text(line))


def _least(table: Table, names: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """The fewest columns of a terminal at which no cell of a table is cut, and no word but those that may be folded."""
    total = 0
    for number, column in enumerate(table.columns):
        cells = [names[number], *(row[number] for row in rows if column.overflow != "fold" or column.no_wrap)]
        total += GAP + max(len(part) for cell in cells for part in ([cell] if column.no_wrap else cell.split() or [""]))
    return total
