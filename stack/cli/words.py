"""Text on the terminal: wrapped to its width; into a pipe every line goes as it is."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable

import typer


def tell(text: str) -> None:
    """Print text; a line that the terminal has no room for goes on below, indented."""
    typer.echo("\n".join(wrapped(line) for line in text.split("\n")) if sys.stdout.isatty() else text)


def tell_list(lines: Iterable[tuple[str, str]]) -> None:
    """Print names, each with what it is."""
    tell("\n".join(f"{name}: {text}" for name, text in lines))


def wrapped(line: str, width: int | None = None) -> str:
    """A line as wide as the terminal, its rest indented by four more than its beginning."""
    width = width or shutil.get_terminal_size().columns
    if len(line) <= width:
        return line
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
