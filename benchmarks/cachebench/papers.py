"""Papers rebuilt for this benchmark alone, and those that are left out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

from stack.caching.contract import SITES, register_site
from stack.caching.schedules import Interval

from .bench import WARMUP, Bench, interval_for
from .budcache import Steps
from .prepare import budgeted
from .record import Record
from .rows import Row, Wanted, preset
from .spectrum import SpectrumSite

REUSE: dict[str, Any] = {"order": 0, "gains": (0.0, 0.0), "corrected": False}  # of the last full step, as it was
RIDGES, DEGREES = (0.1, 0.01, 0.001), (4,)
LEFT_OUT = {
    "L2P (2604.26365), TCC (2605.24870)": "calibration tries them: rows of calibrated caches show what they gain",
    "LearniBridge (2606.26778)": "trains adapters inside the model; its low-rank correction is tried by calibration",
    "MeanCache (ICLR 2026), PrediT (2602.18093), TACache (2605.16789)": "what is public here does not settle their "
    "thresholds and statistics, and a guess would be no rival",
    "HiCache++": "a choice between bases that are rows here; by its authors' account the choice fails its own test",
    "6Bit-Diffusion (2603.18742), SVG-EAR (2603.08982)": "quantization and sparse attention, no caches of steps",
}


def budcache_rows(bench: Bench, record: Record, wanted: Wanted) -> Iterator[Row]:
    """BudCache's search over plain reuse, as the paper has it, and with our own cache under it at equal trials."""
    under: dict[str, tuple[str, dict[str, Any]]] = {
        "BudCache": ("reuse", {"site": "output", **REUSE}),
        "BudCache over svd": ("svd", {}),
    }
    for family, (method, options) in under.items():
        name = f"{family}, {bench.usual}"
        if wanted(name):
            row = partial(_with_steps, bench, name, family, method, options)
            yield row(budgeted(bench, record, row, name, bench.usual))


def spectrum_rows(bench: Bench, wanted: Wanted) -> Iterator[Row]:
    """Spectrum at every count, at several weights and degrees: candidates of a screening."""
    if not wanted("Spectrum"):
        return
    if SpectrumSite.name not in SITES:
        register_site(SpectrumSite)
    for full, ridge, degree in product(bench.counts, RIDGES, DEGREES):
        chosen = Interval(interval_for(full, bench.steps), WARMUP).full_steps(bench.steps)
        name = f"Spectrum, {full} full, ridge {ridge:g}, degree {degree}"
        options = {"site": SpectrumSite.name, "ridge": ridge, "degree": degree, **REUSE}
        yield _with_steps(bench, name, "Spectrum", "reuse", options, tuple(sorted(chosen)))


def _with_steps(bench: Bench, name: str, family: str, method: str, options: dict[str, Any], chosen: Steps) -> Row:
    return preset(bench, name, method, "papers", family, full_steps=chosen, steps=bench.steps, **options)
