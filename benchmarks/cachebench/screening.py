"""Which settings of a rival, or of a gate, stand for it: one counted picture each, the best at each count kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from stack.caching.methods import PRESETS

from .bench import Bench
from .rows import Row, preset

FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # of a gated preset's own threshold
Line = dict[str, Any]


def gate_rows(bench: Bench, fitted: Callable[[str], dict[str, Any]], wanted: Callable[[str], bool]) -> Iterator[Row]:
    """Every gated preset at several thresholds; a draft's bound takes the place of a threshold.

    Args:
        fitted: the measured numbers that a gate needs, by preset.
    """
    for name, policy in PRESETS.items():
        if not policy.gate or not wanted(name):
            continue
        for factor in FACTORS:
            loosened = policy.changed(gate=policy.gate.loosened(factor)).options()
            options = {key: loosened[key] for key in ("threshold", "accept") if key in loosened}
            yield preset(bench, f"{name}, {factor:g} of its threshold", name, **options, **fitted(name))


def best_settings(lines: Sequence[Line], counts: Sequence[int], steps: int) -> dict[str, Line]:
    """Name of a row to the screened line that stands for it.

    Per family and count: the best PSNR with as many full steps (one more is allowed, since a threshold does not hit a
    count exactly), and the best with no more work than that count has. Where a family reaches neither at any count,
    its setting with the least work. A line that refused to run never stands for anything.
    """
    chosen: dict[str, Line] = {}
    ran = [line for line in lines if line.get("psnr") is not None]
    for family in dict.fromkeys(line["family"] for line in ran):
        own = [line for line in ran if line["family"] == family]
        found: dict[str, Line] = {}
        for full in counts:
            alike = [line for line in own if full <= line["full"] <= full + 1]
            light = [line for line in own if line["work"] <= (full + 0.5) / steps]
            picks = {f"{full}": alike, f"work of {full}": light}
            for label, options in picks.items():
                if options:
                    found[label] = max(options, key=lambda line: line["psnr"])
        if not found:
            least = min(line["work"] for line in own)
            found["own pace"] = max((x for x in own if x["work"] <= 1.01 * least), key=lambda line: line["psnr"])
        for label, line in found.items():
            if all(line["row"] != other["row"] for other in chosen.values()):
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
