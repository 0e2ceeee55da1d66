"""The parts of a run by name, in the order they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from stack.core.errors import choose

from .flux import flux_rows, large_rows
from .micro import micro_rows
from .runner import Row
from .setting import Setting
from .smoke import smoke_rows

PARTS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "smoke": smoke_rows,
    "micro": micro_rows,
    "flux": flux_rows,
    "large": large_rows,
}


def parts_named(text: str) -> list[str]:
    """Parts as an option gives them: "smoke,micro".

    Raises:
        StackError: there is no such part.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in PARTS:
            raise choose("part", name, list(PARTS))
    return names
