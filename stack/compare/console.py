"""Where tables and progress are printed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

if TYPE_CHECKING:
    from .loop import Progress


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


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A bar on stderr: what is running, how many pictures are done, how long it will take."""
    text, left = TextColumn("{task.description}"), TextColumn("{task.fields[left]}")
    columns = (SpinnerColumn(), text, BarColumn(), MofNCompleteColumn(), left)
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None, left="")

        def tell(now: Progress) -> None:
            bar.update(
                task, completed=now.done, total=now.total, description=now.text, left=remaining(now.seconds_left)
            )

        yield tell


def remaining(seconds: float | None) -> str:
    """Time left for reading: "about 1 min 20 s left"; empty while unknown."""
    if seconds is None:
        return ""
    whole = 5 * round(seconds / 5) if seconds >= 10 else round(seconds)
    minutes, rest = divmod(whole, 60)
    return f"about {f'{minutes} min ' if minutes else ''}{rest} s left"
