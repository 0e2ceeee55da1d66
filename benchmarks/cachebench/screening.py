"""Which settings of a rival stand for it: two counted pictures each, the best ones kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .rows import Row
from .targets import AIM

Line = dict[str, Any]
SCREENED = 2  # pictures that a setting is tried on


def best_settings(lines: Sequence[Line], usual: int) -> dict[str, Line]:
    """Name of a row to the screened line that stands for it, by medians.

    Per family: the best with as many full steps as usual (one more is allowed, since a threshold does not hit a count
    exactly); the least work that reaches 40 dB, and the best of those with less work, so that its own curve crosses
    40 dB between them. Where a family never reaches that, its best. A line that refused to run stands for nothing.
    """
    chosen: dict[str, Line] = {}
    ran = [line for line in lines if line.get("median") is not None]
    for family in dict.fromkeys(line["family"] for line in ran):
        own = [line for line in ran if line["family"] == family]
        enough = [line for line in own if line["median"] >= AIM]
        found = {f"{usual}": [line for line in own if usual <= line["full"] <= usual + 1]}
        if enough:
            least = min(enough, key=lambda line: line["work"])
            found |= {f"at {AIM:g} dB": [least], "quicker": [x for x in own if x["work"] < least["work"]]}
        else:
            found["at its best"] = own
        for label, options in found.items():
            line = max(options, key=lambda line: line["median"], default=None)
            if line is not None and all(line["row"] != other["row"] for other in chosen.values()):
                chosen[f"{family}, {label} (best of {len(own)})"] = line
    return chosen


def stand_ins(candidates: Sequence[Row], chosen: dict[str, Line]) -> list[Row]:
    """The candidates that were chosen, under the names they stand for."""
    named = {row.name: row for row in candidates}
    return [replace(named[line["row"]], name=name) for name, line in chosen.items() if line["row"] in named]


def refused(lines: Sequence[Line]) -> dict[str, str]:
    """Families of which no setting ran, and the reason the first one gave."""
    ran = {line["family"] for line in lines if not line.get("note")}
    notes: dict[str, str] = {}
    for line in lines:
        if line["family"] not in ran:
            notes.setdefault(line["family"], line["note"])
    return notes
