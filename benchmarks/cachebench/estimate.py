"""How long a run will take, told before it begins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console

from stack.measure.timing import timed

from .bench import BATCH, Bench, pictures
from .prepare import BUDGET
from .record import Record, finished
from .rows import OURS, SHARES, Row, Wanted, control_steps, preset_rows
from .screening import SCREENED

CACHED = 0.06  # of a full step: what a cached one takes on top, on average over the presets
PRESET, RIVAL = 0.26, 0.5  # of the base's time: what a request of a preset and of a rival's setting takes
COUNTED = 1.3  # of a request's time: what it takes while its operations are counted


def tell_time(bench: Bench, record: Record, candidates: Sequence[Row], wanted: Wanted) -> None:
    """What all of it will take, from a few steps of the base; what is finished is not counted."""
    parts = expected(bench, record, candidates, wanted, step_seconds(bench))
    told = ", ".join(f"{name} {seconds / 60:.1f} min" for name, seconds in parts.items())
    Console().print(f"about {sum(parts.values()) / 60:.0f} minutes: {told}", highlight=False)


def step_seconds(bench: Bench) -> float:
    """Seconds of a full step per picture, in a batch as it is judged."""
    texts = (bench.fit_texts * BATCH)[:BATCH]
    pictures(bench.pipe, texts[:1], 2, 0)
    device = torch.device(bench.pipe.device)
    return timed(lambda: pictures(bench.pipe, texts, 2, 0), device)[1] / (2 * len(texts))


def expected(bench: Bench, record: Record, candidates: Sequence[Row], wanted: Wanted, step: float) -> dict[str, float]:
    """Seconds by part.

    Args:
        step: seconds of a full step per picture.
    """
    request, each = step * bench.steps, bench.prompts + bench.rounds + COUNTED
    batch = bench.trials * step * bench.fitted_on[0]
    calibrations = [f"{method} calibrated, {bench.usual}" for method in OURS]
    prepare = BUDGET * sum(wanted(name) and name not in record.prepared for name in calibrations)
    for steps in control_steps(bench, "searched"):
        prepare += steps * batch * (wanted(f"{steps} steps, searched") and f"control, {steps}" not in record.prepared)
    searches = [f"{family}, {bench.usual}" for family in ("BudCache", "BudCache over svd")]
    cached = bench.usual + CACHED * (bench.steps - bench.usual)
    prepare += cached * batch * sum(wanted(name) and name not in record.prepared for name in searches)

    def left(names: Sequence[str]) -> int:
        done = {line["row"] for line in record.rows if line.get("note") or line.get("rounds", 0) >= bench.rounds}
        return sum(name not in done for name in names)

    tried = sum(not finished(record.screening, row.name, row.settings, 0) for row in candidates)
    presets = left([row.name for row in preset_rows(bench, wanted, lambda name: {})])
    fewer = sum(
        steps * left([f"{steps} steps, {group}"])
        for group in SHARES
        for steps in control_steps(bench, group)
        if wanted(f"{steps} steps, {group}")
    )
    families = len({row.family for row in candidates})
    return {
        "calibration and searches": prepare,
        f"screening {tried} settings": tried * RIVAL * request * SCREENED * COUNTED,
        f"{presets} presets": presets * PRESET * request * each,
        "the base and fewer steps": (fewer * step + request) * each,
        f"{families} rivals and papers": (2.5 * families * RIVAL + len(searches) * PRESET) * request * each,
    }
