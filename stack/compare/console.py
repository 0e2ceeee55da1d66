"""Where tables are printed."""

from __future__ import annotations

import sys

from rich.console import Console


def console(piped: int = 120) -> Console:
    """A console as wide as its terminal, or with `piped` columns where its output goes to a file."""
    return Console() if sys.stdout.isatty() else Console(width=piped)
