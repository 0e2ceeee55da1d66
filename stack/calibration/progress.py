"""What a search shows while it runs."""

from __future__ import annotations

import math

from ..core.progress import ProgressLine
from .time_budget import SearchBudget


class BestSoFar:
    """The progress of a calibration on one line: what is done, which trial this is, the best score so far."""

    def __init__(self, budget: SearchBudget, shown: bool):
        self._budget, self._line = budget, ProgressLine("calibrate", shown)
        self._best, self._made, self._phase = -math.inf, 0, "starting"

    def __enter__(self) -> BestSoFar:
        self._line.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._line.__exit__()

    def says(self, what: str) -> None:
        """What is being done now."""
        self._phase = what
        self._show()

    def scored(self, value: float) -> None:
        """A trial was scored, in dB."""
        self._best, self._made = max(self._best, value), self._made + 1
        self._show()

    def _show(self) -> None:
        note = f"{self._made} of at most {self._budget.trials} trials" if self._made else ""
        note += f", best {self._best:.1f} dB" if self._made else ""
        left = max(0.0, self._budget.seconds - self._budget.spent)
        self._line.says(self._phase, note=note, left=left)
