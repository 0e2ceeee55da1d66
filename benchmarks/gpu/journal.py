"""The rows of a run, one JSON line each, on the disk before the next row starts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stack.core.errors import StackError

Line = dict[str, Any]
UNFINISHED = ("error", "skipped", "interrupted")  # a line that holds one of these is no measurement


class Journal:
    """A file that only grows. A line that was cut off when its process was killed is passed over.

    Args:
        folder: made if it is not there; the file in it is `rows.jsonl`.
    """

    def __init__(self, folder: Path):
        self.path = folder / "rows.jsonl"

    def add(self, line: Line) -> None:
        """Append a line and wait until the disk has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(line, default=str) + "\n"
        cut_off = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a") as file:
            file.write("\n" + text if cut_off else text)
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> list[Line]:
        """Everything written so far, oldest first."""
        if not self.path.is_file():
            return []
        return [line for text in self.path.read_text().splitlines() if (line := _parsed(text)) is not None]

    def start(self, machine: Line, versions: Line, tiny: bool) -> None:
        """Note that a run begins here.

        Raises:
            StackError: the file holds rows of another machine, or of a dry run.
        """
        before = start_of(self.lines())
        new = {"machine": machine, "versions": versions, "tiny": tiny}
        if before and (before["machine"]["vector"], before["tiny"]) != (machine["vector"], tiny):
            held = f"{before['machine']['vector']}{', a dry run' if before['tiny'] else ''}"
            raise StackError(f"{self.path} holds rows of {held}: expected the same machine and sizes, or another --out")
        self.add({"start": new})


def _parsed(text: str) -> Line | None:
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) else None


def start_of(lines: Iterable[Line]) -> Line | None:
    """What the latest run said of itself when it began."""
    return next((line["start"] for line in reversed(list(lines)) if "start" in line), None)


def is_measured(line: Line) -> bool:
    """Whether a line holds figures."""
    return "row" in line and not any(key in line for key in UNFINISHED)


def newest(lines: Sequence[Line]) -> list[Line]:
    """One line per row, in the order they first appeared: its latest measurement, or its latest line if it has none."""
    found: dict[tuple[str, str], Line] = {}
    for line in lines:
        if "row" not in line:
            continue
        key = line["part"], line["row"]
        if is_measured(line) or key not in found or not is_measured(found[key]):
            found[key] = line
    return list(found.values())
