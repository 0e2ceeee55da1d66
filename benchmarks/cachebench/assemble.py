"""All rows of a run: what is wanted is prepared and screened, and nothing else."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence

from rich.progress import Progress

from .bench import FIT_SEED, Bench
from .estimate import tell_time
from .measuring import count, line_of, work_of
from .papers import budcache_rows, spectrum_rows
from .prepare import calibrated, fitted, or_empty, searched
from .quality import likeness
from .record import Line, Record, finished, merge
from .rivals import cache_dit_rows, diffusers_rows, mag_ratios
from .rows import OURS, Row, Wanted, control_steps, controls, fewer, preset, preset_rows, rounding, solvers, twins
from .screening import SCREENED, best_settings, refused, stand_ins


def matcher(patterns: Sequence[str]) -> Wanted:
    """Whether a name matches one of these shell wildcards; without any, every name does."""
    return lambda name: not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def assemble(bench: Bench, record: Record, wanted: Wanted) -> list[Row]:
    """Every wanted row, ready to run."""
    candidates = screened_rows(bench, record, wanted)
    tell_time(bench, record, candidates, wanted)
    record.rows = merge(record.rows, [_twin(name, other) for name, other in twins().items() if wanted(name)])
    rows = list(ours(bench, record, wanted))
    rows += list(preset_rows(bench, wanted, lambda name: fitted(bench, record, name)))
    rows += list(budcache_rows(bench, record, wanted))
    rows += list(solvers(bench, wanted))
    rows += list(rounding(bench, wanted)) + list(controls(bench, wanted))
    rows += list(searched_controls(bench, record, wanted))
    return rows + screen(bench, record, candidates)


def _twin(name: str, other: str) -> Line:
    return _told(name, "preset", name, f"the same cache as {other}, measured there")


def _told(row: str, group: str, family: str, note: str) -> Line:
    return {"row": row, "group": group, "family": family, "settings": {}, "rounds": 0, "note": note}


def ours(bench: Bench, record: Record, wanted: Wanted) -> Iterator[Row]:
    """Our cache calibrated, at the usual number of full steps."""
    for method in OURS:
        family = f"{method} calibrated"
        if wanted(f"{family}, {bench.usual}"):
            options = calibrated(bench, record, bench.usual, method)
            yield preset(bench, f"{family}, {bench.usual}", method, "ours", family, **options)


def searched_controls(bench: Bench, record: Record, wanted: Wanted) -> Iterator[Row]:
    """The second-order control with its steps searched, at the numbers of steps that caches compete with."""
    for steps in control_steps(bench, "searched"):
        if wanted(f"{steps} steps, searched"):
            yield fewer(bench, steps, "searched", searched(bench, record, steps, bench.trials))


def screened_rows(bench: Bench, record: Record, wanted: Wanted) -> list[Row]:
    """Every setting to try of rivals."""
    rows = [*spectrum_rows(bench, wanted), *(cache_dit_rows(bench) if wanted("cache-dit") else ())]
    kinds = ("MagCache", "TaylorSeer", "TaylorSeer lite", "first-block", "SeaCache")
    if any(wanted(f"diffusers {kind}") for kind in kinds):
        ratios = record.remember("ratios", lambda: or_empty(lambda: mag_ratios(bench, bench.fit_texts[0])))
        rows += diffusers_rows(bench, ratios)
    return [row for row in rows if wanted(row.family)]


def screen(bench: Bench, record: Record, candidates: list[Row]) -> list[Row]:
    """Try each setting on pictures that are not judged, and keep the best of each family."""
    texts = bench.fit_texts[:SCREENED]
    left = [row for row in candidates if not finished(record.screening, row.name, row.settings, 0)]
    if left:
        base = count(fewer(bench, bench.steps, "base"), bench, texts, FIT_SEED)
        try:
            with Progress(transient=True) as bar:
                task = bar.add_task("screening", total=len(left))
                for row in left:
                    bar.update(task, advance=1, description=f"screening {row.name}")
                    found = count(row, bench, texts, FIT_SEED)
                    if not found.refusal:
                        found.known = work_of(found, base, bench) | likeness(found.made, base.made)
                    record.screening = merge(record.screening, [line_of(found, base)])
        finally:
            record.save(bench.pipe.device.type)
    names = {row.name for row in candidates}
    lines = [line for line in record.screening if line["row"] in names]
    groups = {line["family"]: line["group"] for line in lines}
    notes = [_told(family, groups[family], family, note) for family, note in refused(lines).items()]
    record.rows = merge(record.rows, notes)
    return stand_ins(candidates, best_settings(lines, bench.usual))
