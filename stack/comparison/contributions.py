"""What each pass of one recipe contributes: seconds saved, squared error added, and its factor of the speedup."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..measure.metrics import CAP_DB
from .rows import ALL, BASE

TOGETHER = "together"


def contributions(rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """Seconds per picture that each pass saves, and mean squared error that it adds, by pass in running order.

    A pass counts with the mean of what it does as the only one and what it does as the last one: its Shapley value
    (Shapley 1953) where there are two passes, near it where there are more. The last entry, "together", is what is left
    to the measured sum: what passes do to each other. Both columns add up to the whole stack.

    Args:
        rows: of the record, by name.

    Returns:
        None where a figure is missing: several recipes, or an interrupted run.
    """
    stages = _measured_stages(rows, "seconds", "psnr_db")
    if stages is None:
        return None
    time = _shares(stages, lambda name: float(rows[name]["seconds"]))
    error = _shares(stages, lambda name: squared_error(rows[name]["psnr_db"]))
    return [{"pass": name, "seconds_saved": -time[name], "squared_error": error[name]} for name in time]


def factors(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float] | None:
    """By pass in running order, the factor that it contributes to the speedup of the whole stack.

    As `contributions`, of the logarithm of time, since speedups multiply. What passes do to each other is shared out in
    proportion, so that the product is the speedup that was measured.

    Args:
        rows: of the record, by name.

    Returns:
        None where a time is missing.
    """
    stages = _measured_stages(rows, "seconds")
    if stages is None:
        return None
    shares = _shares(stages, lambda name: -math.log(rows[name]["seconds"]))
    rest, size = shares.pop(TOGETHER), sum(abs(value) for value in shares.values())
    return {stage: math.exp(value + (rest * abs(value) / size if size else 0.0)) for stage, value in shares.items()}


def _measured_stages(rows: Mapping[str, Mapping[str, Any]], *figures: str) -> list[str] | None:
    """The stages of the whole stack; None where one of these figures is missing of a row that says what each does."""
    stages: list[str] = rows[ALL]["passes"] if ALL in rows else []
    needed = [BASE, ALL, *stages, *(f"{ALL}-{stage}" for stage in stages)]
    missing = any(name not in rows or any(rows[name][key] is None for key in figures) for name in needed)
    return None if missing or not stages else stages


def squared_error(psnr_db: float) -> float:
    """The mean squared error behind a PSNR of pictures in [0, 1]; 0 at the cap, which stands for identical ones."""
    return 0.0 if psnr_db >= CAP_DB else 10.0 ** (-psnr_db / 10)


def _shares(stages: list[str], value: Callable[[str], float]) -> dict[str, float]:
    """By pass, what it changes of a row's value, and what remains to the change by all."""
    base, whole = value(BASE), value(ALL)
    shares = {stage: (value(stage) - base + whole - value(f"{ALL}-{stage}")) / 2 for stage in stages}
    return {**shares, TOGETHER: whole - base - sum(shares.values())}
