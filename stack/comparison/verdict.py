"""What a comparison comes to, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..measure.metrics import CAP_DB
from ..measure.style import times
from .record import visible
from .rows import ALL

# Two rows count as equally fast, or equally good, within these: the repeatability of timing on a quiet machine, and a
# difference that nobody sees in a picture.
SAME_TIME, SAME_DB = 0.02, 0.1

Figures = Mapping[str, Any]


def verdict(record: Figures) -> str:
    """The advice that the figures give: a pass to leave out, fewer plain steps instead, or the stack as it is."""
    whole = [row for row in visible(record) if row["group"] == "all"]
    measured = [row for row in whole if row["speedup"] and row["psnr_db"] is not None]
    if not measured:
        why = [text for row in whole for text in row["warnings"] if text.startswith("failed")]
        return f"no verdict: {why[0]}" if why else "no verdict: no whole stack was measured"
    text = _of_one(record, measured[0]) if len(whole) == 1 else _of_several(record, measured)
    return f"so far: {text}" if record["partial"] else text


def margins(record: Figures) -> list[str]:
    """Each whole stack beside its better control: what it wins or loses against simply taking fewer steps."""
    lines = []
    for row in visible(record):
        rival = best_control(record, row)
        if row["group"] != "all" or row["psnr_db"] is None or rival is None:
            continue
        margin = row["psnr_db"] - rival["psnr_db"]
        place = f"{abs(margin):.1f} dB {'above' if margin >= 0 else 'BELOW'}"
        place = "nearer to the plain model than" if row["psnr_db"] >= CAP_DB > rival["psnr_db"] else place
        lines.append(f"{row['name']} is {place} its better control, {rival['name']}: {_point(row)}, {_point(rival)}")
    return lines


def best_control(record: Figures, row: Figures) -> Figures | None:
    """The control of a row that is nearer to the base; None where none was measured."""
    own = [r for r in record["rows"] if r["control_of"] == row["name"] and r["psnr_db"] is not None]
    return max(own, key=lambda control: control["psnr_db"], default=None)


def _of_one(record: Figures, whole: Figures) -> str:
    rows = {row["name"]: row for row in record["rows"]}
    without = {stage: rows.get(f"{ALL}-{stage}") for stage in whole["passes"]}
    useless = {
        stage: row for stage, row in without.items() if row and row["same_as"] != "base" and _no_worse(row, whole)
    }
    if not useless:
        return _beside(record, whole, "the stack") + _beaten(record, whole)
    stage = max(useless, key=lambda stage: useless[stage]["psnr_db"] - whole["psnr_db"])
    rest = rows[useless[stage]["same_as"] or useless[stage]["name"]]
    if not _worth_having(record, rest):
        return _beside(record, rest, f"the stack without {stage}") + _beaten(record, rest)
    advice = f"leave {stage} out: {_price(useless[stage], whole)}"
    return f"{advice}; {_beside(record, rest, 'the rest')}" + _beaten(record, rest)


def _worth_having(record: Figures, row: Figures) -> bool:
    """Whether a row saves time, and is nearer to the base than fewer plain steps in that time."""
    rival = best_control(record, row)
    nearer = rival is None or row["psnr_db"] - rival["psnr_db"] > SAME_DB
    return bool(nearer and row["speedup"] > 1 + SAME_TIME)


def _no_worse(without: Figures, whole: Figures) -> bool:
    """Whether a stack without one of its passes is as fast and as near to the base as with it."""
    if not without["seconds"] or without["psnr_db"] is None:
        return False
    faster = whole["seconds"] / without["seconds"] >= 1 - SAME_TIME
    return bool(faster and without["psnr_db"] >= whole["psnr_db"] - SAME_DB)


def _price(without: Figures, whole: Figures) -> str:
    """What a pass costs that saves nothing."""
    if without["same_as"] == whole["name"]:
        return "it does nothing here"
    lost, slower = without["psnr_db"] - whole["psnr_db"], whole["seconds"] / without["seconds"] - 1
    cost = f"it costs {lost:.1f} dB and " if lost >= SAME_DB else "it "
    return cost + (f"makes the stack {slower:.0%} slower" if slower > SAME_TIME else "saves nothing here")


def _beside(record: Figures, row: Figures, what: str) -> str:
    """A row beside the base and beside fewer plain steps in the same time."""
    if row["speedup"] <= 1 + SAME_TIME:
        return f"use the model as it is: {what} saves no time here ({_point(row)})"
    rival = best_control(record, row)
    if rival is None:
        return f"{what} is {times(row['speedup'])} as fast as the plain model {_at(row)}"
    margin = row["psnr_db"] - rival["psnr_db"]
    if margin < 0 and rival["psnr_db"] >= CAP_DB:
        return f"use the model as it is: {what} saves less than the time of a step here ({_point(row)})"
    if margin <= SAME_DB:
        better = f"have {-margin:.1f} dB more than" if margin < -SAME_DB else "have the same PSNR as"
        return f"take fewer plain steps instead: {rival['steps']} steps take the same time and {better} {what}"
    return f"{what} is {times(row['speedup'])} as fast as the plain model {_at(row)}, {_above(row, rival)}"


def _beaten(record: Figures, row: Figures) -> str:
    """Another library's cache that is both faster and nearer to the base."""
    peers = [r for r in visible(record) if r["role"] == "peer" and r["speedup"] and r["psnr_db"] is not None]
    better = [r for r in peers if r["speedup"] > row["speedup"] and r["psnr_db"] > row["psnr_db"]]
    best = max(better, key=lambda peer: peer["psnr_db"], default=None)
    return f"; {best['name']} is faster and better ({_point(best)})" if best else ""


def _of_several(record: Figures, whole: Sequence[Figures]) -> str:
    best, beside, margin = None, None, 0.0
    for row in whole:
        rival = best_control(record, row)
        if rival and _worth_having(record, row) and row["psnr_db"] - rival["psnr_db"] >= margin:
            best, beside, margin = row, rival, row["psnr_db"] - rival["psnr_db"]
    if best is None or beside is None:
        return f"take fewer plain steps instead: none of the {len(whole)} recipes is better in the same time"
    above = _above(best, beside)
    return f"take {best['name']}: {_point(best)}, {above}, the largest margin of {len(whole)} recipes" + _beaten(
        record, best
    )


def _point(row: Figures) -> str:
    return f"{_quality(row)} at {times(row['speedup'])}"


def _at(row: Figures) -> str:
    return f"{'with' if row['psnr_db'] >= CAP_DB else 'at'} {_quality(row)}"


def _quality(row: Figures) -> str:
    return "identical pictures" if row["psnr_db"] >= CAP_DB else f"{row['psnr_db']:.1f} dB"


def _above(row: Figures, rival: Figures) -> str:
    """How much nearer to the base than its control a row is; identical pictures have no number of dB."""
    if row["psnr_db"] >= CAP_DB:
        return f"where fewer plain steps in the same time have {_quality(rival)}"
    return f"{row['psnr_db'] - rival['psnr_db']:.1f} dB above fewer plain steps in the same time"
