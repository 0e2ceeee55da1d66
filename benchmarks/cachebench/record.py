"""The record of a cache benchmark: kept after every round, gone on with by the next run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stack.comparison.record import machine, save_json
from stack.core.errors import StackError
from stack.core.versions import versions

Line = dict[str, Any]
TIMES = ("rounds", "seconds", "speedup", "overhead_ms")  # of a line: what a further run measures anew


def plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value))


def merge(old: Sequence[Line], new: Sequence[Line]) -> list[Line]:
    """Old lines, each replaced by the new one of its name; new names behind them."""
    fresh = {line["row"]: line for line in new}
    kept = [fresh.pop(line["row"], line) for line in old]
    return [*kept, *fresh.values()]


def known_quality(lines: Sequence[Line], name: str, settings: dict[str, Any]) -> Line:
    """What an earlier run counted and judged of a row of these settings; empty where it did not."""
    found = (x for x in lines if x["row"] == name and x["settings"] == plain(settings) and "median" in x)
    return {key: value for key, value in next(found, {}).items() if key not in TIMES}


def finished(lines: Sequence[Line], name: str, settings: dict[str, Any], rounds: int) -> bool:
    """Whether a row of these settings is measured in at least so many rounds, or is known not to run."""
    return any(
        line["row"] == name
        and line["settings"] == plain(settings)
        and (bool(line.get("note")) or line.get("rounds", 0) >= rounds)
        for line in lines
    )


@dataclass
class Record:
    """What is known so far.

    Attributes:
        prepared: what was calibrated, fitted or searched, by name.
        screening: one line per setting tried.
        rows: one line per row measured.
        left_out: what has no row, and why.
    """

    path: Path
    protocol: dict[str, Any]
    prepared: dict[str, Any] = field(default_factory=dict)
    screening: list[Line] = field(default_factory=list)
    rows: list[Line] = field(default_factory=list)
    targets: list[Line] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, protocol: dict[str, Any], fresh: bool = False) -> Record:
        """Go on with a file, or begin one.

        Raises:
            StackError: the file was measured by another protocol; nothing is overwritten.
        """
        protocol = plain(protocol)
        if fresh or not path.is_file():
            return cls(path, protocol)
        known = json.loads(path.read_text())
        if known["protocol"] != protocol:
            names = [key for key in protocol if known["protocol"].get(key) != protocol[key]]
            raise StackError(f"{path} was measured with other {', '.join(names)}: expected the same, --fresh or --out")
        return cls(path, protocol, **{key: known[key] for key in ("prepared", "screening", "rows", "targets")})

    def remember(self, key: str, compute: Callable[[], Any]) -> Any:
        """What was prepared under this name, now or in a run before."""
        if key not in self.prepared:
            self.prepared[key] = plain(compute())
            self.save()
        return self.prepared[key]

    def save(self, device: str = "cpu") -> None:
        """Write everything."""
        whole = {
            "protocol": self.protocol, "machine": machine(device), "versions": versions(), "targets": self.targets,
            "rows": self.rows, "prepared": self.prepared, "screening": self.screening, "left_out": self.left_out,
        }  # fmt: skip
        save_json(whole, self.path)
