"""What a search shows while it runs."""

from __future__ import annotations

import math
from typing import Any


class BestSoFar:
    """A progress bar with the best score so far; the terminal is left as it was when it ends."""

    def __init__(self, trials: int, shown: bool):
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), TextColumn("best {task.fields[best]}")]
        self._progress = Progress(*columns, TimeRemainingColumn(), transient=True, disable=not shown)
        self._best = -math.inf
        self._task = self._progress.add_task("recording", total=trials, best="-")

    def __enter__(self) -> BestSoFar:
        self._progress.start()
        return self

    def says(self, what: str) -> None:
        """What is being done now."""
        self._progress.update(self._task, description=what)

    def scored(self, value: float) -> None:
        """A trial was scored, in dB."""
        self._best = max(self._best, value)
        self._progress.update(self._task, advance=1, best=f"{self._best:.1f} dB")

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
