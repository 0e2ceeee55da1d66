"""All rows of a run: what is wanted is prepared and screened, and nothing else."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

from rich.console import Console
from rich.progress import Progress

from stack.caching.methods import PRESETS
from stack.caching.sites.fastcache import FastCacheSite
from stack.measure.metrics import psnr
from stack.measure.multistep import multistep_of
from stack.measure.timing import timed

from .bench import Bench, pictures
from .measuring import count, line_of
from .prepare import BUDGET, calibrated, fitted_maps, gate_options, or_empty, searched
from .record import Record, finished, merge
from .rivals import cache_dit_rows, diffusers_rows, mag_ratios
from .rows import FASTCACHE_FACTORS, OURS, Row, control_steps, controls, fewer, preset, rounding, scheduled
from .screening import best_settings, gate_rows, refused, stand_ins
from .targets import in_time_of, slow_rivals

Wanted = Callable[[str], bool]
SEARCHED = 0.36  # of the base's steps: controls with more are not searched, they are far from any cache's time
KEPT = 0.95  # of the speedup that full steps alone would allow: what is asked of ours; measured 0.91 to 0.97 on flows
MEAN, COUNTED = 0.45, 2.0  # what a request costs on average as a share of the base's, and counting on top of it


def matcher(patterns: Sequence[str]) -> Wanted:
    """Whether a name matches one of these shell wildcards; without any, every name does."""
    return lambda name: not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def assemble(bench: Bench, record: Record, wanted: Wanted) -> list[Row]:
    """Every wanted row, ready to run."""
    candidates = screened_rows(bench, record, wanted)
    _tell_time(bench, record, candidates, wanted)
    rows = list(ours(bench, record, wanted))
    rows += list(scheduled(bench, wanted)) + list(fastcache_rows(bench, wanted))
    rows += list(rounding(bench, wanted)) + list(controls(bench, wanted))
    rows += list(searched_controls(bench, record, wanted))
    return rows + screen(bench, record, candidates)


def ours(bench: Bench, record: Record, wanted: Wanted) -> Iterator[Row]:
    """Our two caches, calibrated at every count; the default also in the time of slow rivals, once measured."""
    for method, full in product(OURS, bench.counts):
        family = f"{method} calibrated"
        if wanted(f"{family}, {full}"):
            options = calibrated(bench, record, full, method)
            yield preset(bench, f"{family}, {full}", method, "ours", family, **options)
    for rival in slow_rivals(record.rows, bench.counts, bench.steps).values():
        if wanted(in_time_of(rival)):
            options = calibrated(bench, record, _full_in_time_of(bench, rival), "svd")
            yield preset(bench, in_time_of(rival), "svd", "ours", "svd calibrated", **options)


def _full_in_time_of(bench: Bench, rival: dict[str, Any]) -> int:
    return int(KEPT * bench.steps / rival["speedup"])


def fastcache_rows(bench: Bench, wanted: Wanted) -> Iterator[Row]:
    """FastCache's presets as published, and the first of them at several thresholds."""
    for name, policy in PRESETS.items():
        for factor in FASTCACHE_FACTORS if name == "fastcache" else (1.0,):
            site = policy.site
            if not isinstance(site, FastCacheSite):
                continue
            row = name if factor == 1 else f"{name}, {site.threshold * factor:g}"
            if wanted(row):
                options: dict[str, Any] = {} if factor == 1 else {"threshold": site.threshold * factor}
                maps = {"maps": str(fitted_maps(bench))} if site.needs_maps else {}
                yield preset(bench, row, name, **options, **maps)


def searched_controls(bench: Bench, record: Record, wanted: Wanted) -> Iterator[Row]:
    """The second-order control with its steps searched, at the numbers of steps that caches compete with."""
    for steps in control_steps(bench.steps) if multistep_of(bench.pipe.scheduler) else []:
        if steps <= SEARCHED * bench.steps and wanted(f"{steps} steps, searched"):
            yield fewer(bench, steps, "searched", searched(bench, record, steps, bench.trials))


def screened_rows(bench: Bench, record: Record, wanted: Wanted) -> list[Row]:
    """Every setting to try of gates and rivals."""
    rows = list(gate_rows(bench, lambda name: gate_options(bench, record, name), wanted))
    theirs = list(cache_dit_rows(bench)) if _any(wanted, "cache-dit") else []
    if _any(wanted, "diffusers"):
        ratios = record.remember("ratios", lambda: or_empty(lambda: mag_ratios(bench, bench.fit_texts[0])))
        theirs += diffusers_rows(bench, ratios)
    return rows + [row for row in theirs if wanted(row.family)]


def _any(wanted: Wanted, maker: str) -> bool:
    families = [maker, f"{maker} fast", f"{maker} ultra", f"{maker} first-block", f"{maker} MagCache"]
    return any(wanted(family) for family in [*families, f"{maker} TaylorSeer", f"{maker} TaylorSeer lite"])


def screen(bench: Bench, record: Record, candidates: list[Row]) -> list[Row]:
    """Try each setting on one picture that is not measured on, and keep the best of each family at each count."""
    text, seed = bench.fit_texts[0], 1000
    left = [row for row in candidates if not finished(record.screening, row.name, row.settings, 0)]
    if left:
        base = count(fewer(bench, bench.steps, "base"), bench, text, seed)
        try:
            with Progress(transient=True) as bar:
                task = bar.add_task("screening", total=len(left))
                for row in left:
                    bar.update(task, advance=1, description=f"screening {row.name}")
                    line = line_of(count(row, bench, text, seed), base, bench, lambda a, b, _: {"psnr": psnr(a, b)})
                    record.screening = merge(record.screening, [line])
        finally:
            record.save(bench.pipe.device.type)
    names = {row.name for row in candidates}
    lines = [line for line in record.screening if line["row"] in names]
    record.rows = merge(record.rows, [_refusal(family, note, lines) for family, note in refused(lines).items()])
    return stand_ins(candidates, best_settings(lines, bench.counts, bench.steps))


def _refusal(family: str, note: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    group = next(line["group"] for line in lines if line["family"] == family)
    return {"row": family, "group": group, "family": family, "settings": {}, "rounds": 0, "note": note}


def _tell_time(bench: Bench, record: Record, candidates: list[Row], wanted: Wanted) -> None:
    """What all of it will take, from two steps of the base; rows that are finished are not counted."""
    pictures(bench.pipe, bench.texts[0], 2, 0)
    step = timed(lambda: pictures(bench.pipe, bench.texts[0], 4, 0), bench.pipe.device)[1] / 4
    batch = 3 * bench.trials * step
    calibrations = [f"{m} calibrated, {n}" for m, n in product(OURS, bench.counts) if wanted(f"{m} calibrated, {n}")]
    theirs = [r for r in slow_rivals(record.rows, bench.counts, bench.steps).values() if wanted(in_time_of(r))]
    calibrations += [f"svd calibrated, {_full_in_time_of(bench, rival)}" for rival in theirs]
    prepare = BUDGET * sum(name not in record.prepared for name in calibrations)
    walked = [n for n in control_steps(bench.steps) if n <= SEARCHED * bench.steps and wanted(f"{n} steps, searched")]
    prepare += sum(n * batch for n in walked if f"control, {n}" not in record.prepared)
    left = sum(not finished(record.screening, row.name, row.settings, 0) for row in candidates)
    families = len({row.family for row in candidates})
    known = len(list(scheduled(bench, wanted))) + len(list(controls(bench, wanted))) + len(walked)
    rows = known + len(calibrations) + families * len(bench.counts)
    done = sum(line.get("rounds", 0) >= bench.rounds and wanted(line["row"]) for line in record.rows)
    request = MEAN * step * bench.steps
    screening, timing = left * request * COUNTED, max(1, rows - done) * request * (bench.rounds + COUNTED)
    parts = {"calibration and search": prepare, f"screening {left} settings": screening, f"{rows} rows": timing}
    told = ", ".join(f"{name} {seconds / 60:.0f} min" for name, seconds in parts.items())
    Console().print(f"about {sum(parts.values()) / 60:.0f} minutes: {told}", highlight=False)
