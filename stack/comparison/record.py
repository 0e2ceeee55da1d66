"""compare.json: from measured rows to figures."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..core.facts import machine_of
from ..core.files import json_text, write_text
from ..core.versions import versions
from ..measure.flops import Work, row_work
from ..measure.metrics import CAP_DB, efficiency, interaction_db, picture_warnings, psnr, ssim
from ..measure.quality import Judge
from ..measure.timing import median, ratio
from ..runtime.report import steps_worth
from .contributions import contributions
from .intervals import psnr_interval, ratio_interval
from .loop import Measurement
from .rows import ALL, BASE, BASE_EAGER, CONTROL, Generation, Measured, Row, is_multistep, uncached_partner

ROW_KEYS = (
    "name", "passes", "seconds", "speedup", "flops_speedup", "psnr_db", "ssim", "accuracy", "full_steps", "steps",
    "cache_bytes", "peak_bytes", "warnings",
)  # fmt: skip
KEYS = ("model", "device", "dtype", "torch", "prompts", "steps", "seed", "rows", "efficiency", "interaction_db")

Accuracy = Callable[[torch.Tensor], float | None]


@dataclass(frozen=True)
class Header:
    """What a comparison was asked to do, and on what; `call` are the other arguments of every call, in words."""

    model: str
    device: str
    dtype: str
    prompts: tuple[str, ...]
    steps: int
    seed: int
    recipes: tuple[str, ...]
    call: Mapping[str, Any] = field(default_factory=dict)


def reference_of(measurement: Measurement) -> Measured:
    """The unaccelerated, uncompiled run: what pictures are compared with."""
    return measurement.rows.get(BASE_EAGER, measurement.rows[BASE])


def build_record(
    header: Header, measurement: Measurement, work: Work, accuracy: Accuracy, judge: Judge | None = None
) -> dict[str, Any]:
    """The contents of compare.json.

    Speedups are medians over medians. `efficiency` and `interaction_db` exist for a single recipe only.

    Args:
        work: of one denoiser call.
        accuracy: reads pictures (B, 3, H, W) or videos (B, F, 3, H, W) back; None where that is not possible.
        judge: measures of quality beyond PSNR and SSIM; none by default.
    """
    judge = judge or Judge(())
    shown = {name: m for name, m in measurement.rows.items() if name != BASE_EAGER and not m.row.same_as}
    rows = {
        name: _row(m, measurement, work, accuracy, judge, header.prompts)
        for name, m in shown.items()
        if m.generations or m.warnings
    }
    for name, m in measurement.rows.items():
        if m.row.same_as in rows:
            rows[name] = {**rows[m.row.same_as], **_own(m)}
    ordered = [rows[name] for name in measurement.rows if name in rows]
    _name_controls(ordered)
    alone = [rows.get(stage) for stage in measurement.rows[ALL].row.passes] if ALL in measurement.rows else []
    together = _together(efficiency, "speedup", rows.get(ALL), alone)
    return {
        "model": header.model,
        "device": header.device,
        "dtype": header.dtype,
        "torch": torch.__version__,
        "prompts": list(header.prompts),
        "steps": header.steps,
        "seed": header.seed,
        "call": dict(header.call),
        "size": _size(measurement),
        "rows": ordered,
        "efficiency": together,
        "interaction_db": _together(interaction_db, "psnr_db", rows.get(ALL), alone),
        "contributions": contributions(rows),
        "pairs": _pairs(ordered),
        "recipe": header.recipes[0] if len(header.recipes) == 1 else list(header.recipes),
        "metrics": judge.about(),
        "left_out": judge.left_out,
        "partial": measurement.partial,
        "command": None,  # whoever was asked on a command line adds it
        "machine": machine(header.device),
        "versions": versions(),
        "macs_per_step": asdict(work),
        "warnings": measurement.warnings + _few(measurement),
    }


def _own(m: Measured) -> dict[str, Any]:
    """What is a row's own where it shares another's measurement; warnings, but for those of the measurement."""
    row = m.row
    return {
        "name": row.name, "passes": list(row.passes), "role": row.role, "group": row.group, "recipe": row.recipe,
        "control_of": row.control_of, "warnings": m.warnings, "same_as": row.same_as,
    }  # fmt: skip


def _name_controls(rows: Sequence[dict[str, Any]]) -> None:
    """Say of every row which control is its own, and how near to the base that one is."""
    by_name = {row["name"]: row for row in rows}
    for row in rows:
        own = [r for r in rows if r["control_of"] == row["name"] and not is_multistep(r["name"])]
        # A row that shares another's measurement shares its control.
        shared = by_name.get(row["same_as"], {}) if row["role"] == "stack" else {}
        row["control"] = own[0]["name"] if own else shared.get("control")
        row["control_psnr_db"] = own[0]["psnr_db"] if own else shared.get("control_psnr_db")
        row["control_steps"] = own[0]["steps"] if own else shared.get("control_steps")


def _pairs(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How each two passes of the one recipe go together, where a row has just these two."""
    stacks = {tuple(row["passes"]): row for row in rows if row["role"] == "stack"}
    alone = [passes[0] for passes in stacks if len(passes) == 1]
    found = []
    for pair, row in stacks.items():
        if len(pair) == 2 and set(pair) <= set(alone):
            parts = [stacks[(stage,)] for stage in pair]
            found.append({
                "passes": list(pair),
                "row": row["name"],
                "efficiency": _together(efficiency, "speedup", row, parts),
                "interaction_db": _together(interaction_db, "psnr_db", row, parts),
            })  # fmt: skip
    return found


def _size(measurement: Measurement) -> list[int] | None:
    """Width and height of the pictures in pixels."""
    done = measurement.rows[BASE].generations
    return [*done[0].picture.shape[:-3:-1]] if done else None


def _row(
    m: Measured, measurement: Measurement, work: Work, accuracy: Accuracy, judge: Judge, prompts: Sequence[str]
) -> dict[str, Any]:
    base, reference, done = measurement.rows[BASE], reference_of(measurement), m.generations
    seconds = median(m.seconds)
    common = min(len(done), len(reference.generations))
    pictures, truth = (m.pictures[:common], reference.pictures[:common]) if common else (None, None)
    each = [] if pictures is None or truth is None else list(map(psnr, pictures, truth))
    speedup = ratio(median(base.seconds), seconds)
    kinds = done[0].kinds if done else ()
    partner = uncached_partner(m.row, [other.row for other in measurement.rows.values()])
    return {
        "name": m.row.name,
        "passes": list(m.row.passes),
        "seconds": seconds,
        "speedup": speedup,
        "speedup_95": ratio_interval(speedup, base.seconds, m.seconds) if m is not base else None,
        "flops_speedup": _flops_speedup(work, base.row.steps, done),
        "psnr_db": None if pictures is None or truth is None else psnr(pictures, truth),
        "psnr_db_each": each,
        "psnr_db_95": psnr_interval(each),
        "ssim": None if pictures is None or truth is None else ssim(pictures, truth),
        "quality": {} if pictures is None or truth is None else judge(pictures, truth, prompts),
        "accuracy": accuracy(m.pictures) if done else None,
        "full_steps": steps_worth(done[0].work) if kinds else None,
        "steps": len(kinds) or None,
        "cache_bytes": max((g.cache_bytes for g in done), default=None),
        "peak_bytes": max((g.peak_bytes for g in done if g.peak_bytes is not None), default=None),
        "warnings": _warnings(m, pictures, truth),
        "role": m.row.role,
        "group": m.row.group,
        "recipe": m.row.recipe,
        "same_as": None,
        "control_of": m.row.control_of,
        "seconds_all": m.seconds,
        "prompts_done": len(done),
        "kinds": list(kinds),
        "computed": [step.linears for step in done[0].work] if kinds else [],
        "sigmas": list(done[0].sigmas) if done else [],
        "errors": list(done[0].errors) if done else [],
        "attention_density": done[0].density if done else None,
        "psnr_vs_uncached_db": None if partner is None else _against(m, measurement, partner),
    }


def _flops_speedup(work: Work, steps: int, done: Sequence[Generation]) -> float | None:
    """Work of the base / work of the row, mean over its pictures."""
    if not done or not done[0].kinds or not work.step():
        return None
    mean = sum(row_work(work, g.work, g.density) for g in done) / len(done)
    return steps * work.step() / mean if mean else None


def _against(m: Measured, measurement: Measurement, partner: Row) -> float | None:
    """PSNR against the same stack without its cache: the cache's own error, without that of the passes below it."""
    other = measurement.rows[partner.name] if partner.passes else reference_of(measurement)
    common = min(len(m.generations), len(other.generations))
    return psnr(m.pictures[:common], other.pictures[:common]) if common else None


def _warnings(m: Measured, pictures: torch.Tensor | None, truth: torch.Tensor | None) -> list[str]:
    found = list(m.warnings)
    for generation in m.generations:
        found += generation.warnings
    if pictures is not None:
        found += picture_warnings(pictures, None if m.row.role == "base" else truth, m.row.role == "stack")
    kinds = m.generations[0].kinds if m.generations else ()
    cached = len(kinds) - kinds.count("full")
    if "cache" in m.row.passes and kinds and not cached and not any(w.startswith("0 of") for w in found):
        found.append(f"0 of {len(kinds)} steps cached")
    return list(dict.fromkeys(found))


def _few(measurement: Measurement) -> list[str]:
    return ["one prompt, one seed: take the figures as a first look"] if measurement.rounds == 1 else []


def _together(
    figure: Callable[[float | None, Sequence[float | None]], float | None],
    key: str,
    together: Mapping[str, Any] | None,
    alone: Sequence[Mapping[str, Any] | None],
) -> float | None:
    if together is None or not alone:
        return None
    return figure(together[key], [None if row is None else row[key] for row in alone])


def machine(device: str) -> dict[str, Any]:
    """What it ran on."""
    threads = torch.get_num_threads()
    return {**asdict(machine_of(torch.device(device))), "threads": threads, "system": platform.platform()}


def visible(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows worth a line on screen.

    Those that share another's measurement are left out, and those that are figures of another row: its control where
    it is no whole stack, and two passes of more than three together.
    """
    whole = {row["name"] for row in record["rows"] if row["group"] == "all"}
    shown = [row for row in record["rows"] if not row["same_as"] and row["group"] != "pair"]
    return [row for row in shown if row["role"] != CONTROL or row["control_of"] in whole]


def decibels(value: float | None) -> str:
    """A PSNR for reading: "identical" at the cap, "-" where there is none."""
    if value is None:
        return "-"
    return "identical" if value >= CAP_DB else f"{value:.1f}"


def save_json(record: Mapping[str, Any], path: Path) -> None:
    """Write a record as strict JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json_text(record) + "\n")
