"""One line on stderr that says what a measurement is doing, how far it is, and how long it will take."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

EVERY = 5.0  # seconds between two lines where they cannot be written over each other
CLEAR = "\r\x1b[K"


class ProgressLine:
    """Shows progress while it is entered: one line written over on a terminal, a line now and then into a pipe.

    Args:
        title: what is measured.
        shown: False shows nothing.
    """

    def __init__(self, title: str, shown: bool = True):
        self._title, self._shown = title, shown
        self._started = self._phase_started = time.monotonic()
        self._phase = ""
        self._written = -EVERY

    def __enter__(self) -> ProgressLine:
        self._started = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown and sys.stderr.isatty():
            print(CLEAR, end="", file=sys.stderr, flush=True)

    def says(
        self,
        phase: str,
        done: int = 0,
        total: int = 0,
        note: str = "",
        left: float | None = None,
        most: float = math.inf,
    ) -> None:
        """What is being done now.

        Args:
            done, total: of the pieces of this phase; 0 where they are not known.
            left: seconds to go; by default estimated from the pieces done.
            most: seconds after which it ends in any case.
        """
        if not self._shown:
            return
        now = time.monotonic()
        new = phase != self._phase
        if new:
            self._phase, self._phase_started = phase, now
        if left is None and done and total:
            left = min(most, (now - self._phase_started) / done * (total - done))
        words = [f"{phase} {done} of {total}" if total else phase, note, f"{spoken(now - self._started)} so far"]
        words += [f"about {spoken(left)} left"] if left is not None else []
        line = f"{self._title}: {', '.join(word for word in words if word)}"
        if sys.stderr.isatty():
            print(f"{CLEAR}{line}", end="", file=sys.stderr, flush=True)
        elif new or now - self._written >= EVERY:
            self._written = now
            print(line, file=sys.stderr, flush=True)

    def track(self, items: Sequence[T], phase: str) -> Iterator[T]:
        """The items one after the other, each counted once it is done with."""
        self.says(phase, 0, len(items))
        for number, item in enumerate(items):
            yield item
            self.says(phase, number + 1, len(items))


def spoken(seconds: float) -> str:
    """A time for reading: "12 s", "3 min 5 s"."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def counted(count: int, thing: str) -> str:
    """A number of things for reading: "1 picture", "2 pictures"."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
