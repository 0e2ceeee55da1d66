"""A cap on what a cache holds on the device: kept as it is, kept by moving cold state to the host, or refused.

A block's features are used once per step, in order, so that all but those in use are cold. Which of them leave a CUDA
device is planned from policy and facts; nothing is moved because memory turned out to be short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..core.facts import Facts
from ..core.passes import Finding
from .memory import StateSize, state_size
from .policy import Policy


@dataclass(frozen=True)
class Offload:
    """Which of the predicted features leave the device; bytes per picture and guidance branch.

    Attributes:
        units, away: blocks or modules whose features stay, and those whose do not; the first ones stay.
        features: how many features the first have.
        device: what stays: their bytes, and all that cannot be moved.
        host: what is kept in host memory.
        in_use: the most of it that is back on the device at once: one block or module.
    """

    units: int
    away: int
    features: int
    device: int
    host: int
    in_use: int


def offload(p: Policy, facts: Facts) -> Offload | None:
    """The split that leaves the most on the device; None where none is needed, or none keeps the cap."""
    size = state_size(p, facts)
    if size is None or not p.max_bytes or size.total <= p.max_bytes or facts.machine.device != "cuda":
        return None
    splits = (_after(number, size) for number in reversed(range(len(size.units))))
    return next((split for split in splits if split.device + split.in_use <= p.max_bytes), None)


def _after(number: int, size: StateSize) -> Offload:
    """The first `number` units stay."""
    stay, leave = size.units[:number], size.units[number:]
    host = sum(unit.bytes for unit in leave)
    in_use = max(unit.bytes for unit in leave)
    return Offload(number, len(leave), sum(unit.count for unit in stay), size.total - host, host, in_use)


def size_words(p: Policy, facts: Facts) -> str:
    """The size in words, for `explain()`."""
    size, split = state_size(p, facts), offload(p, facts)
    if size is None:
        return "state size unknown"
    return f"{size} per picture and guidance branch" + (f": {_offload_words(p, split)}" if split else "")


def _offload_words(p: Policy, split: Offload) -> str:
    here = f"{_mb(split.device)} on the device with {split.units} of {split.units + split.away} {p.site.part}s"
    there = f"{_mb(split.host)} in pinned host memory with {split.away}"
    return f"{here}, {there}, of which at most {_mb(split.in_use)} are back at once"


def _mb(number: int) -> str:
    return f"{number / 1e6:.1f} MB"


def check_cap(p: Policy, facts: Facts, stage: str) -> list[Finding]:
    """What is moved to keep the cap; a cap that the state is known to break is refused, with choices that keep it."""
    size = state_size(p, facts)
    if not p.max_bytes or (size and size.total <= p.max_bytes):
        return []
    if size is None:
        what = f"max_bytes={p.max_bytes} cannot be kept: the size of the state is not known before the run"
        return [Finding(stage, what, "no pipeline tells the number of tokens", repair="max_bytes=0", fatal=True)]
    if split := offload(p, facts):
        why = f"max_bytes allows {_mb(p.max_bytes)} of {_mb(size.total)}; copies are not overlapped with computing"
        return [Finding(stage, f"state is split: {_offload_words(p, split)}", why, note=True)]
    what = f"{size} per picture and guidance branch, max_bytes allows {_mb(p.max_bytes)}"
    if facts.machine.device == "cuda" and size.units:
        what += f"; {_mb(_least(size))} have to be on the device even with one {p.site.part} at a time"
    return [Finding(stage, what, repair=" or ".join(_smaller(p, facts, size)), fatal=True)]


def _smaller(p: Policy, facts: Facts, size: StateSize) -> list[str]:
    """Single choices that fit under the cap; the smallest possible cap where there are none."""
    tries: dict[str, dict[str, Any]] = {"state_dtype='bfloat16'": {"state_dtype": "bfloat16"}}
    tries |= {f"order={order}": {"order": order} for order in range(p.forecast.order - 1, -1, -1)}
    if p.site.divisible and not p.gate:
        tries["site='output'"] = {"site": "output"}
    fitting = [words for words, change in tries.items() if _fits(p.changed(**change), facts)]
    if fitting:
        return fitting
    movable = facts.machine.device == "cuda" and size.units
    return [f"max_bytes={_least(size) if movable else size.total}"]


def _least(size: StateSize) -> int:
    """The smallest cap that can be kept by moving state."""
    split = _after(0, size)
    return split.device + split.in_use


def _fits(p: Policy, facts: Facts) -> bool:
    size = state_size(p, facts)
    return size is not None and (size.total <= p.max_bytes or offload(p, facts) is not None)
