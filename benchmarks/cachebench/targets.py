"""What a finished table has to show, computed from its own rows. Pure.

Everything is compared by the median over pictures, and at equal time by curves (`curves`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from common import Target
from curves import Point, at_speedup, speedup_at

from stack.caching.methods import is_reading
from stack.comparison.report.plots import front

Line = dict[str, Any]
CONTROLS = {"euler": ("euler",), "second order": ("second order", "searched")}
CACHES = ("ours", "preset", "papers", "cache-dit", "diffusers")
DEFAULT = "svd"
# Median dB of the default at so many of 50 full steps.
GOALS = {
    "shapes-flux": {12: 53.0, 9: 48.0, 6: 42.0},
    "shapes-video": {12: 52.0, 9: 47.0, 6: 40.0},
    "shapes-dit": {12: 42.0, 9: 38.0, 6: 32.0},
}
FLIPS_AS = {"shapes-dit": 20}  # plain steps whose share of flipped pictures is the most that the default may have
AIM = 40.0  # dB at which speeds are compared
OVER_SEARCHED, FASTER_THAN_SEARCHED, FASTER_THAN_RIVALS, CALIBRATED = 4.0, 1.3, 3.0, 3.0
NOISE = 0.1  # DuCa's latency may differ from its work by this much


def measured(lines: Sequence[Line]) -> list[Line]:
    """Lines of rows that ran and were timed."""
    return [line for line in lines if line.get("speedup") is not None]


def points_of(lines: Sequence[Line], which: Callable[[Line], bool]) -> list[Point]:
    """(speedup, median dB) of the rows that were timed and are meant."""
    return [(line["speedup"], line["median"]) for line in measured(lines) if which(line)]


def curve(lines: Sequence[Line], groups: Sequence[str]) -> list[Point]:
    """Points of the controls of these groups that no other of them beats in both time and median."""
    points = points_of(lines, lambda line: line["group"] in groups)
    return [points[i] for i in front(points)]


def over_controls(lines: Sequence[Line]) -> list[Line]:
    """The lines with dB over each control at the row's own time, and over the better of both; None without a curve."""
    curves = {name: curve(lines, groups) for name, groups in CONTROLS.items()}
    told = []
    for line in lines:
        over: dict[str, float | None] = dict.fromkeys([*(f"over {name}" for name in curves), "over controls"])
        if line["group"] in (*CACHES, "solver") and line.get("speedup") is not None:
            margins = {
                f"over {name}": line["median"] - at_speedup(points, line["speedup"])
                for name, points in curves.items()
                if points
            }
            over |= margins | {"over controls": min(margins.values(), default=None)}
        told.append({**line, **over})
    return told


def default_targets(lines: Sequence[Line], model: str, counts: Sequence[int], steps: int) -> list[Target]:
    """What the default has to show where nobody calibrates, as far as it was measured."""
    named = {line["row"]: line for line in measured(lines)}
    ours = {full: named[row] for full in counts if (row := f"{DEFAULT}, {full}") in named}
    return _levels(ours, named, model, steps) + _over_plain(lines) + _over_searched(lines, ours) + _over_rivals(lines)


def _levels(ours: dict[int, Line], named: dict[str, Line], model: str, steps: int) -> list[Target]:
    """Medians at each count, and flipped layouts."""
    goals = GOALS.get(model, {}) if steps == 50 else {}
    found = [Target(f"{DEFAULT}, {n}: median dB", ours[n]["median"], goal) for n, goal in goals.items() if n in ours]
    plain = named.get(f"{FLIPS_AS.get(model)} steps, euler")
    if plain is not None:
        for n in goals.keys() & ours.keys():
            name = f"{DEFAULT}, {n}: share of flipped pictures, against {plain['row']}"
            found.append(Target(name, ours[n]["flipped"], plain["flipped"], "<="))
    return found


def _over_plain(lines: Sequence[Line]) -> list[Target]:
    """No preset under its plain name is below plain steps in its own time: the worst row of each."""
    worst: dict[str, Line] = {}
    for line in measured(lines):
        if line["group"] == "preset" and not is_reading(line["family"]) and line["over euler"] is not None:
            worst[line["family"]] = min(line, worst.get(line["family"], line), key=lambda each: each["over euler"])
    return [Target(f"{x['row']}: dB over plain steps in its own time", x["over euler"], 0.0) for x in worst.values()]


def _over_searched(lines: Sequence[Line], ours: dict[int, Line]) -> list[Target]:
    """The default against the second-order control with searched steps: in equal time, and at 40 dB."""
    points = points_of(lines, lambda line: line["group"] == "searched")
    if not points or not ours:
        return []
    found = [
        Target(f"{x['row']}: dB over searched steps in its own time", x["median"] - at_speedup(points, x["speedup"]),
               OVER_SEARCHED)
        for x in ours.values()
    ]  # fmt: skip
    name, ratio = _times_faster(lines, "searched steps", points)
    return [*found, Target(name, ratio, FASTER_THAN_SEARCHED)]


def _of_family(family: str, line: Line) -> bool:
    return line["family"] == family


def _over_rivals(lines: Sequence[Line]) -> list[Target]:
    """The default against the quickest at 40 dB of other libraries and of presets as published."""
    rivals = {
        line["family"]: points_of(lines, partial(_of_family, line["family"]))
        for line in measured(lines)
        if line["group"] in ("cache-dit", "diffusers") or is_reading(line["family"])
    }
    # Of those that get there, if any does.
    best = max(rivals, key=lambda family: speedup_at(rivals[family], AIM)[::-1], default=None)
    if best is None or not points_of(lines, _is_default):
        return []
    name, ratio = _times_faster(lines, best, rivals[best])
    return [Target(name, ratio, FASTER_THAN_RIVALS)]


def _is_default(line: Line) -> bool:
    return bool(line["family"] == DEFAULT)


def _times_faster(lines: Sequence[Line], rival: str, points: Sequence[Point]) -> tuple[str, float]:
    """How many times faster the default is at 40 dB, and the sentence that says against whom."""
    (mine, there), (theirs, rival_there) = speedup_at(points_of(lines, _is_default), AIM), speedup_at(points, AIM)
    never = [name for name, reaches in ((DEFAULT, there), (rival, rival_there)) if not reaches]
    note = f"; {' and '.join(never)} never there: slowest point" if never else ""
    return f"{DEFAULT}: times faster at {AIM:g} dB than {rival} ({mine:.2f}x, {theirs:.2f}x{note})", mine / theirs


def calibrated_targets(lines: Sequence[Line], usual: int) -> list[Target]:
    """What a calibration adds to the default at the usual number of full steps."""
    named = {line["row"]: line for line in measured(lines)}
    plain, ours = named.get(f"{DEFAULT}, {usual}"), named.get(f"{DEFAULT} calibrated, {usual}")
    if plain is None or ours is None:
        return []
    return [Target(f"{ours['row']}: dB over {plain['row']}", ours["median"] - plain["median"], CALIBRATED)]


def published_targets(lines: Sequence[Line], steps: int) -> list[Target]:
    """The default's overhead, DuCa's latency against its work, FastCache against first-block in equal time."""
    targets = []
    for line in measured(lines):
        asked = line["settings"]
        if line["family"] == DEFAULT and (asked.get("interval") == 7 or asked.get("count") == 9):
            kept = line["speedup"] * line["full"] / steps
            targets.append(Target(f"{line['row']}: speedup over {steps} / {line['full']}", kept, 0.95))
        if line["family"].startswith("duca") and asked.keys() <= {"method"}:
            off = abs(1 / (line["speedup"] * line["work"]) - 1)
            targets.append(Target(f"{line['row']}: latency ratio away from its FLOPs ratio", off, NOISE, "<="))
    gate = points_of(lines, lambda line: line["family"].startswith("first-block"))
    for line in measured(lines):
        if gate and line["family"].startswith("fastcache"):
            margin = line["median"] - at_speedup(gate, line["speedup"])
            targets.append(Target(f"{line['row']}: dB over first-block in equal time", margin, 0.0))
    return targets


def controls_lost_to(lines: Sequence[Line]) -> tuple[int, int]:
    """(caches that lose to fewer steps in their own time, caches measured)."""
    known = [line for line in lines if line.get("over controls") is not None]
    return sum(line["over controls"] < 0 for line in known), len(known)
