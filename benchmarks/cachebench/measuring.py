"""One request of a row, counted or timed, and rows in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from stack.core.errors import StackError
from stack.measure.flops import counted
from stack.measure.timing import timed

from .bench import BATCH, Bench, pictures
from .rows import Row
from .state import Leftover
from .targets import CACHES

FULL, CACHED = 0.98, 0.1  # work of a call as a share of the base's: above, a full step; below, a cached one
# What libraries raise at a model or a setting that they do not support.
REFUSALS = (
    StackError,
    AttributeError,
    ValueError,
    TypeError,
    AssertionError,
    RuntimeError,
    KeyError,
    NotImplementedError,
)


@dataclass
class Measured:
    """What is known of a row.

    Attributes:
        calls: work of each denoiser call of the counted request, in FLOPs.
        flops: of the whole request.
        state: bytes of tensors that the request left alive: the cache.
        made: pictures of the counted request.
        known: figures that go into its line as they are, such as its quality.
        seconds: by round.
        refusal: why the row could not run at all; "" if it could.
    """

    row: Row
    calls: list[int] = field(default_factory=list)
    flops: int = 0
    state: int = 0
    made: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    known: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    refusal: str = ""


@contextmanager
def refusable(found: Measured) -> Iterator[None]:
    """What a library raises in here at a model or a setting is kept as the row's refusal, not raised."""
    try:
        yield
    except REFUSALS as error:
        first = (str(error).strip().splitlines() or [""])[0]
        found.refusal = f"not supported by {found.row.family}: {type(error).__name__}: {first[:160]}"


def count(row: Row, bench: Bench, texts: str | list[str], seed: int) -> Measured:
    """The row's work and state in one whole request, which is its warm-up too."""
    found = Measured(row)
    with refusable(found):
        with row.using() as live:
            with Leftover() as left, counted(live.denoiser) as ran:
                found.made = pictures(live.run, texts, bench.steps, seed)
            found.state = left.bytes(apart_from=found.made)
        found.calls, found.flops = ran.calls, ran.flops
    return found


def judged(row: Row, bench: Bench) -> torch.Tensor:
    """The row's pictures of all judged prompts, a few at a time."""
    with row.using() as live:
        parts = [
            pictures(live.run, bench.texts[i : i + BATCH], bench.steps, bench.seeds[i])
            for i in range(0, bench.prompts, BATCH)
        ]
    return torch.cat(parts)


def time_once(measured: Measured, bench: Bench, number: int) -> None:
    """One timed request in round `number`; prompts rotate. Putting the cache on and taking it off is not timed."""
    which = number % len(bench.texts)
    device = torch.device(bench.pipe.device)
    with measured.row.using() as live:
        _, seconds = timed(lambda: pictures(live.run, bench.texts[which], bench.steps, bench.seeds[which]), device)
    measured.seconds.append(seconds)


def in_turn(
    rows: Sequence[Measured], bench: Bench, rounds: int, tell: Callable[[Measured, int], None], done: Callable[[], None]
) -> None:
    """Every row once per round, so that a slow minute hits all alike; `done` after each round."""
    for number in range(rounds):
        for measured in rows:
            tell(measured, number)
            time_once(measured, bench, number)
        done()


def marks(calls: Sequence[int], full: int) -> str:
    """A request as letters: F full, p partial, . cached."""
    shares = [call / full for call in calls]
    return "".join("F" if s > FULL else "." if s < CACHED else "p" for s in shares)


def full_steps(calls: Sequence[int], full: int, steps: int) -> int:
    """Steps that ran everything; a pipeline may call its denoiser several times a step."""
    return round(marks(calls, full).count("F") * min(1.0, steps / max(1, len(calls))))


def work_of(measured: Measured, base: Measured, bench: Bench) -> dict[str, Any]:
    """What a counted request tells against the base's."""
    row, whole = measured.row, max(base.calls)
    return {
        "full": full_steps(measured.calls, whole, bench.steps),
        "pattern": marks(measured.calls, whole),
        "work": measured.flops / base.flops,
        "MB": measured.state / 1e6 if row.group in CACHES else None,
        "calls": len(measured.calls),
        "tflops": measured.flops / 1e12,
        "base_gflops_per_call": base.flops / max(1, len(base.calls)) / 1e9,
    }


def line_of(measured: Measured, base: Measured) -> dict[str, Any]:
    """A row's line of the record."""
    row = measured.row
    line: dict[str, Any] = {"row": row.name, "group": row.group, "family": row.family, "settings": row.settings}
    if measured.refusal:
        return {**line, "rounds": 0, "note": measured.refusal}
    return line | measured.known | _times(measured, base)


def _times(measured: Measured, base: Measured) -> dict[str, Any]:
    """Medians; the ratio to the base is taken round by round. Overhead is the time that the work does not explain."""
    rounds = min(len(measured.seconds), len(base.seconds))
    if not rounds:
        return {"rounds": 0, "seconds": None, "speedup": None, "overhead_ms": None}
    pairs = list(zip(measured.seconds[:rounds], base.seconds[:rounds], strict=True))
    extra = median([mine - measured.known["work"] * whole for mine, whole in pairs])
    return {
        "rounds": rounds,
        "seconds": median([mine for mine, _ in pairs]),
        "speedup": median([whole / mine for mine, whole in pairs]),
        "overhead_ms": 1e3 * extra / max(1, measured.known["calls"]),
    }
