"""The record as Markdown: docs/benchmarks/caches-MODEL.md. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .targets import CACHES, controls_lost_to

Line = dict[str, Any]
TITLES = {
    "ours": "ours, calibrated",
    "preset": "Presets",
    "papers": "Papers rebuilt for this benchmark",
    "cache-dit": "cache-dit",
    "diffusers": "diffusers' hooks",
    "solver": "The solver, which places its steps itself",
    "euler": "Control: fewer steps, own scheduler",
    "second order": "Control: fewer steps, second order",
    "searched": "Control: fewer steps, second order, searched",
    "rounding": "The base in another precision: PSNR above this tells rounding, not quality",
}
HEAD = (
    "row", "speedup", "s", "work", "full", "median", "flipped", "PSNR", "LPIPS", "SSIM", "accuracy", "MB",
    "overhead ms/step", "over controls",
)  # fmt: skip


def cells(line: Line) -> list[str]:
    """A row of the table, as in `HEAD`."""
    margin = line.get("over controls")
    return [
        str(line["row"]), _number(line["speedup"], "{:.2f}x"), _number(line["seconds"], "{:.2f}"),
        _number(line["work"], "{:.3f}"), str(line["full"]), _number(line["median"], "{:.1f}"),
        _number(line["flipped"], "{:.2f}"), _number(line["psnr"], "{:.1f}"), _number(line["perceptual"], "{:.3f}"),
        _number(line["ssim"], "{:.3f}"), _number(line["accuracy"], "{:.3f}"), _number(line["MB"], "{:.1f}"),
        _number(line["overhead_ms"], "{:+.2f}"), _number(margin, "{:+.1f}") + (" loses" if (margin or 0) < 0 else ""),
    ]  # fmt: skip


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page(record: Mapping[str, Any], picture: str, fid: Mapping[str, Any] | None = None) -> str:
    """The whole page.

    Args:
        picture: file name of the plot.
        fid: the record of `cache_fid.py`, where there is one.
    """
    protocol, machine = record["protocol"], record["machine"]
    ran = [line for line in record["rows"] if line.get("speedup") is not None]
    lost, known = controls_lost_to(ran)
    rounds = sorted({line["rounds"] for line in ran})
    parts = [
        f"# Caches on `{protocol['model']}`",
        "Written by `benchmarks/caches.py`; do not edit.",
        f"{protocol['steps']} steps, eager, unquantized; {machine['device']}, {machine['threads']} threads. Quality "
        f"is that of {len(protocol['prompts'])} pictures, each of its own prompt and seed, which no search or fit saw, "
        f"made {protocol['batch']} at once (caches of others that decide by what they see decide for these "
        "together); times are those of one picture alone, in "
        f"{_words(rounds)} rounds in which every row takes its turn. Speedups are medians of ratios to the base in the "
        "same round. `median` is that of the pictures' PSNRs against the base in dB, and what targets compare; "
        "`flipped` the share of pictures below 25 dB, which have another layout; PSNR is pooled over all; LPIPS is the "
        "median of a perceptual distance (shift-tolerant LPIPS with AlexNet, pictures enlarged to 128 pixels, of clips "
        "every fourth frame), 0 for equal pictures, `-` where its weights are not installed. Work is FLOPs over the "
        "base's, as counted while running; a step is full if it did all of them. Overhead is the time per step that "
        "the work does not explain. MB is what a request leaves alive. `over controls`: dB of the median over the "
        "better of the model's own scheduler and a second-order one with as many steps as fit in the row's own time.",
        f"{lost} of {known} caches lose to fewer steps in their own time.",
        f"![speedup against PSNR]({picture})",
    ]
    for group in (*CACHES, "solver", "euler", "second order", "searched", "rounding"):
        own = [line for line in ran if line["group"] == group]
        if own:
            parts += [f"## {TITLES[group]}", table(HEAD, [cells(line) for line in own])]
    parts += _notes(record) + _targets(record) + (_fid(fid) if fid else [])
    return "\n\n".join(parts) + "\n"


def _words(values: Sequence[int]) -> str:
    return " or ".join(str(value) for value in values) or "no"


def _notes(record: Mapping[str, Any]) -> list[str]:
    notes = {line["row"]: line["note"] for line in record["rows"] if line.get("note")}
    left_out = notes | record.get("left_out", {})
    return ["## Without a row", "\n".join(f"- {name}: {note}" for name, note in left_out.items())] if left_out else []


def _targets(record: Mapping[str, Any]) -> list[str]:
    if not record["targets"]:
        return []
    rows = [
        [
            t["name"],
            f"{t['value']:.3g}",
            f"{t['op']} {t['target']:g}",
            "met" if t["met"] else f"**missed** by {t['missed_by']:.3g}",
        ]
        for t in record["targets"]
    ]
    return ["## Targets", table(("target", "value", "asked", ""), rows)]


FID = {
    "same": "FID, the base's",
    "others": "FID, other base samples",
    "drawn": "FID, drawn",
    "t_same": "t-FID, the base's",
    "t_others": "t-FID, other base samples",
    "t_drawn": "t-FID, drawn",
}


def _fid(fid: Mapping[str, Any]) -> list[str]:
    keys = [key for key in FID if any(line.get(key) is not None for line in fid["rows"])]
    rows = [
        [line["row"], str(line["samples"]), *(_number(line.get(key), "{:.3f}") for key in keys)] for line in fid["rows"]
    ]
    text = "On the reader's features: not comparable with published FID. Only figures of equal samples compare."
    return ["## FID", text, table(("row", "samples", *(FID[key] for key in keys)), rows)]
