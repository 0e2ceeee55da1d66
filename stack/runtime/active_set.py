"""How much of a denoiser call the blocks are working on: which samples, all of their tokens or some, on what step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class ActiveSet:
    """Told by the cache of a stack, read by the passes below it. A new one for every denoiser call.

    Attributes:
        cached: whether a cache decides what runs. Without one every step is full.
        full: whose step is full: one entry for each sample of the batch, or one for all. Empty until the cache has
            decided: what runs before, runs on every step.
        rows: the samples that the current call of a block is about; None for all.
        whole: whether it is about all of their tokens.
    """

    cached: bool = False
    full: tuple[bool, ...] = (True,)
    rows: tuple[int, ...] | None = None
    whole: bool = True

    def wait(self) -> None:
        """A cache is there, and has not decided."""
        self.cached, self.full = True, ()

    def decide(self, full: Sequence[bool]) -> None:
        """Whose step is full."""
        self.cached, self.full = True, tuple(full)

    def is_full(self, row: int) -> bool:
        """Whether this is a full step of a sample."""
        if len(self.full) < 2:
            return self.full == (True,)
        return self.full[row] if row < len(self.full) else all(self.full)

    @contextmanager
    def part(self, rows: Sequence[int] | None, whole: bool = True) -> Iterator[None]:
        """What runs inside is about these samples of the batch."""
        before = self.rows, self.whole
        self.rows, self.whole = None if rows is None else tuple(rows), whole
        try:
            yield
        finally:
            self.rows, self.whole = before
