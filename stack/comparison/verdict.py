"""What a comparison comes to, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..measure.metrics import CAP_DB
from ..measure.style import times
from .differences import LARGE_TIME, Difference, Figures, psnr_gain, saved_time, time_gain
from .record import visible
from .rows import ALL


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
        gain = psnr_gain(row, rival)
        place = f"{abs(gain.value):.1f} dB {'above' if gain.value >= 0 else 'BELOW'}"
        nearer = row["psnr_db"] >= CAP_DB > rival["psnr_db"]
        place = "nearer to the plain model than" if nearer else place
        within = "" if nearer or not gain.interval else f" (interval {_decibels(gain.interval)} dB)"
        lines.append(
            f"{row['name']} is {place} its better control, {rival['name']}{within}: {_point(row)}, {_point(rival)}"
        )
    return lines


def best_control(record: Figures, row: Figures) -> Figures | None:
    """The control of a row that is nearer to the base; None where none was measured."""
    own = [r for r in record["rows"] if r["control_of"] == row["name"] and r["psnr_db"] is not None]
    return max(own, key=lambda control: control["psnr_db"], default=None)


def _of_one(record: Figures, whole: Figures) -> str:
    rows = {row["name"]: row for row in record["rows"]}
    others = {stage: rows.get(f"{ALL}-{stage}") for stage in whole["passes"]}
    without = {stage: row for stage, row in others.items() if row and row["same_as"] != "base" and _measured(row)}
    useless = {stage: row for stage, row in without.items() if not _gains(whole, row)}
    if not useless:
        unclear = {stage: time_gain(whole, row) for stage, row in without.items()}
        return _beside(record, whole, "the stack") + _beaten(record, whole) + _open(unclear)
    stage = max(useless, key=lambda stage: _cost(useless[stage], whole))
    rest = rows[useless[stage]["same_as"] or useless[stage]["name"]]
    if not _worth_having(record, rest):
        return _beside(record, rest, f"the stack without {stage}") + _beaten(record, rest)
    advice = f"leave {stage} out: {_price(useless[stage], whole)}"
    return f"{advice}; {_beside(record, rest, 'the rest')}" + _beaten(record, rest)


def _measured(row: Figures) -> bool:
    return bool(row["seconds"]) and row["psnr_db"] is not None


def _gains(whole: Figures, without: Figures) -> bool:
    """Whether a pass gains time or quality; also where it may gain much, and the run is too short to tell."""
    time, quality = time_gain(whole, without), psnr_gain(whole, without)
    return time.sign > 0 or quality.sign > 0 or time.unclear or quality.unclear


def _cost(without: Figures, whole: Figures) -> tuple[float, bool, float]:
    """Orders passes that gain nothing: first those with a cost in dB that counts, then those that do nothing."""
    lost = psnr_gain(without, whole)
    return lost.value if lost.sign > 0 else 0.0, without["same_as"] == whole["name"], lost.value


def _open(gains: Mapping[str, Difference]) -> str:
    """The passes that may save much time, and may save none."""
    named = [f"{stage} ({_factor(gain)})" for stage, gain in gains.items() if gain.unclear]
    return f"; more prompts would tell whether time is saved by {', '.join(named)}" if named else ""


def _worth_having(record: Figures, row: Figures) -> bool:
    """Whether a row saves time, and fewer plain steps are not as good in that time."""
    rival, saved = best_control(record, row), saved_time(row)
    return (saved.sign > 0 or saved.unclear) and (rival is None or _beats(row, rival))


def _beats(row: Figures, rival: Figures) -> bool:
    """Whether a row is nearer to the base than fewer plain steps, or as near where these take longer."""
    gain = psnr_gain(row, rival)
    return gain.sign > 0 or gain.unclear or (gain.sign == 0 and _is_longer(rival, row))


def _is_longer(rival: Figures, row: Figures) -> bool:
    """Whether a control takes longer than its row: it has at least as many steps as the row runs in full."""
    longer = time_gain(row, rival)
    return longer.sign > 0 and longer.value > LARGE_TIME


def _price(without: Figures, whole: Figures) -> str:
    """What a pass costs that gains nothing."""
    if without["same_as"] == whole["name"]:
        return "it does nothing here"
    gain, lost = time_gain(whole, without), psnr_gain(without, whole)
    price = f"it gains nothing that this run can measure ({_factor(gain)})"
    if gain.sign < 0:
        price = f"it makes the stack {time_gain(without, whole).value:.0%} slower"
    return price + (f" and costs {lost.value:.1f} dB" if lost.sign > 0 else "")


def _beside(record: Figures, row: Figures, what: str) -> str:
    """A row beside the base and beside fewer plain steps in the same time."""
    saved, rival = saved_time(row), best_control(record, row)
    if saved.sign <= 0 and not saved.unclear:
        point = f"{_quality(row)} at {_factor(saved)}"
        return f"use the model as it is: {what} saves no time that this run can measure ({point})"
    found = f"{what} is {times(row['speedup'])} as fast as the plain model {_at(row)}"
    if rival is None:
        return found
    gain, steps = psnr_gain(row, rival), rival["steps"]
    if gain.value < 0 and rival["psnr_db"] >= CAP_DB:
        return f"use the model as it is: {what} saves less than the time of a step here ({_point(row)})"
    if _beats(row, rival):
        return f"{found}, {_above(row, rival)}"
    instead = f"take fewer plain steps instead: {steps} steps take the same time"
    if gain.sign == 0:
        return f"{instead}, and {what} is no better as far as this run can measure"
    if _is_longer(rival, row):
        return f"{found}; {steps} plain steps have {-gain.value:.1f} dB more and take {_longer(row, rival)}"
    return f"{instead} and have {-gain.value:.1f} dB more than {what}"


def _beaten(record: Figures, row: Figures) -> str:
    """Another library's cache that is both faster and nearer to the base."""
    peers = [r for r in visible(record) if r["role"] == "peer" and r["speedup"] and r["psnr_db"] is not None]
    better = [r for r in peers if time_gain(r, row).sign > 0 and psnr_gain(r, row).sign > 0]
    best = max(better, key=lambda peer: peer["psnr_db"], default=None)
    return f"; {best['name']} is faster and better ({_point(best)})" if best else ""


def _of_several(record: Figures, whole: Sequence[Figures]) -> str:
    beside = {row["name"]: best_control(record, row) for row in whole}
    pairs = [(row, rival) for row in whole if (rival := beside[row["name"]]) and _worth_having(record, row)]
    if not pairs:
        return f"take fewer plain steps instead: none of the {len(whole)} recipes is better in the same time"
    best, rival = max(pairs, key=lambda pair: pair[0]["psnr_db"] - pair[1]["psnr_db"])
    above = f"{_above(best, rival)}, the largest margin of {len(whole)} recipes"
    return f"take {best['name']}: {_point(best)}, {above}" + _beaten(record, best)


def _point(row: Figures) -> str:
    return f"{_quality(row)} at {times(row['speedup'])}"


def _at(row: Figures) -> str:
    return f"{'with' if row['psnr_db'] >= CAP_DB else 'at'} {_quality(row)}"


def _quality(row: Figures) -> str:
    return "identical pictures" if row["psnr_db"] >= CAP_DB else f"{row['psnr_db']:.1f} dB"


def _above(row: Figures, rival: Figures) -> str:
    """How much nearer to the base than its control a row is; identical pictures have no number of dB."""
    gain = psnr_gain(row, rival)
    if row["psnr_db"] >= CAP_DB:
        return f"where fewer plain steps in the same time have {_quality(rival)}"
    if gain.sign == 0 and not gain.unclear:
        return f"as near to it as {rival['steps']} plain steps, which take {_longer(row, rival)}"
    doubt = (
        f" (interval {_decibels(gain.interval)} dB: more prompts would tell)" if gain.unclear and gain.interval else ""
    )
    return f"{gain.value:.1f} dB above fewer plain steps in the same time{doubt}"


def _longer(row: Figures, rival: Figures) -> str:
    return f"{times(1 + time_gain(row, rival).value)} as long"


def _factor(gain: Difference) -> str:
    """A gain in time for reading: "1.01x, interval 0.97 to 1.05"."""
    within = f", interval {1 + gain.interval[0]:.2f} to {1 + gain.interval[1]:.2f}" if gain.interval else ""
    return times(1 + gain.value) + within


def _decibels(interval: tuple[float, float]) -> str:
    low, high = (round(bound, 1) + 0.0 for bound in interval)  # never "-0.0"
    return f"{low:.1f} to {high:.1f}"
