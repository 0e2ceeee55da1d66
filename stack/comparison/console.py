"""Where tables are printed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table


def console(piped: int = 120) -> Console:
    """A console as wide as its terminal, or with `piped` columns where its output goes to a file."""
    return Console() if sys.stdout.isatty() else Console(width=piped)


def print_columns(names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under the names of their columns; all but the first column may be folded."""
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold", no_wrap=name == names[0])
    for row in rows:
        table.add_row(*row)
    console().print(table)
