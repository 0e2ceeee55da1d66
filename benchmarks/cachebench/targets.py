"""What a finished table has to show, computed from its own rows. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from common import Target
from curves import Point, at_speedup, pareto_front

from .rows import OURS

Line = dict[str, Any]
CONTROLS = {"euler": ("euler",), "second order": ("second order", "searched")}
CACHES = ("ours", "preset", "cache-dit", "diffusers")
SAME_TIME = 0.97  # speedups closer than this are one time: medians of a few rounds differ by as much
SLOW = 0.6  # of the speedup that its full steps alone would allow
NOISE = 0.1  # DuCa's latency may differ from its work by this much


def measured(lines: Sequence[Line]) -> list[Line]:
    """Lines of rows that ran and were timed."""
    return [line for line in lines if line.get("speedup") is not None]


def curve(lines: Sequence[Line], groups: Sequence[str]) -> list[Point]:
    """Points of the controls of these groups that no other of them beats in both time and PSNR."""
    points = [(line["speedup"], line["psnr"]) for line in measured(lines) if line["group"] in groups]
    return [points[i] for i in pareto_front(points)]


def over_controls(lines: Sequence[Line]) -> list[Line]:
    """The lines with dB over each control at the row's own time, and over the better of both; None without a curve."""
    curves = {name: curve(lines, groups) for name, groups in CONTROLS.items()}
    told = []
    for line in lines:
        over: dict[str, float | None] = dict.fromkeys([*(f"over {name}" for name in curves), "over controls"])
        if line["group"] in CACHES and line.get("speedup") is not None:
            margins = {
                f"over {name}": line["psnr"] - at_speedup(points, line["speedup"])
                for name, points in curves.items()
                if points
            }
            over |= margins | {"over controls": min(margins.values(), default=None)}
        told.append({**line, **over})
    return told


def others(lines: Sequence[Line]) -> list[Line]:
    """Other people's caches, and TaylorSeer as we have it."""
    return [
        line for line in measured(lines)
        if line["group"] in ("cache-dit", "diffusers") or line["family"].startswith("taylorseer")
    ]  # fmt: skip


def as_full(lines: Sequence[Line], full: int) -> list[Line]:
    """Rivals with so many full steps."""
    return [line for line in others(lines) if full <= line["full"] <= full + 1]


def rivals_of(ours: Line, lines: Sequence[Line], full: int) -> dict[str, list[Line]]:
    """Rivals with as many full steps, and in no more time."""
    quick = [line for line in others(lines) if line["speedup"] >= SAME_TIME * ours["speedup"]]
    return {f"with {full} full steps": as_full(lines, full), "in its own time": quick}


def slow_rivals(lines: Sequence[Line], counts: Sequence[int], steps: int) -> dict[int, Line]:
    """By number of full steps: the best rival with as many where it takes far longer than they do, as blocks that run
    on every step make it. What we have in its time is worth a row."""
    best = {n: max(as_full(lines, n), key=lambda line: line["psnr"], default=None) for n in counts}
    return {n: line for n, line in best.items() if line is not None and line["speedup"] < SLOW * steps / n}


def in_time_of(rival: Line) -> str:
    """Name of our row that takes a rival's time."""
    return f"svd calibrated, in the time of {rival['row'].split(' (best of')[0]}"


def calibrated_targets(lines: Sequence[Line], counts: Sequence[int], steps: int) -> list[Target]:
    """Our calibrated caches at each number of full steps, as far as they were measured.

    A rival with as many full steps may take far longer, by blocks that run on every step: its speedup is told.
    """
    named, targets = {line["row"]: line for line in measured(lines)}, []
    for method, full in product(OURS, counts):
        name = f"{method} calibrated, {full}"
        ours = named.get(name)
        if ours is None:
            continue
        for how, rivals in rivals_of(ours, lines, full).items():
            best = max(rivals, key=lambda line: line["psnr"], default=None)
            if best is not None:
                what = f"{name}: dB over the best rival {how} ({best['row']}, {best['speedup']:.2f}x)"
                targets.append(Target(what, ours["psnr"] - best["psnr"], 4.0))
        for control in CONTROLS:
            if ours[f"over {control}"] is not None:
                what = f"{name}: dB over fewer steps, {control}, in its own time"
                targets.append(Target(what, ours[f"over {control}"], 0.0))
        targets.append(Target(f"{name}: speedup over {steps} / {full}", ours["speedup"] * full / steps, 0.95))
    return targets + _in_their_time(named, slow_rivals(lines, counts, steps))


def _in_their_time(named: Mapping[str, Line], rivals: Mapping[int, Line]) -> list[Target]:
    targets = []
    for rival in {line["row"]: line for line in rivals.values()}.values():
        ours = named.get(in_time_of(rival))
        if ours is not None and ours["speedup"] >= SAME_TIME * rival["speedup"]:
            what = f"{ours['row']}: dB over it ({ours['speedup']:.2f}x, it {rival['speedup']:.2f}x)"
            targets.append(Target(what, ours["psnr"] - rival["psnr"], 4.0))
    return targets


def published_targets(lines: Sequence[Line], steps: int) -> list[Target]:
    """The overhead at interval 7, DuCa's latency against its work, FastCache against first-block in equal time."""
    targets = []
    for line in measured(lines):
        if line["family"] == "svd" and line["group"] == "preset" and line["settings"].get("interval") == 7:
            kept = line["speedup"] * line["full"] / steps
            targets.append(Target(f"svd, interval 7: speedup over {steps} / {line['full']}", kept, 0.95))
        if line["family"].startswith("duca"):
            off = abs(1 / (line["speedup"] * line["work"]) - 1)
            targets.append(Target(f"{line['row']}: latency ratio away from its FLOPs ratio", off, NOISE, "<="))
    gate = [(line["speedup"], line["psnr"]) for line in measured(lines) if line["family"] == "first-block"]
    for line in measured(lines):
        if gate and line["family"] == "fastcache":
            margin = line["psnr"] - at_speedup(gate, line["speedup"])
            targets.append(Target(f"{line['row']}: dB over first-block in equal time", margin, 0.0))
    return targets


def controls_lost_to(lines: Sequence[Line]) -> tuple[int, int]:
    """(caches that lose to fewer steps in their own time, caches measured)."""
    known = [line for line in lines if line.get("over controls") is not None]
    return sum(line["over controls"] < 0 for line in known), len(known)
