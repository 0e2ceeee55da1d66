"""The record as Markdown: docs/benchmarks/compatibility-MODEL.md. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cachebench.page import table

from .targets import ratios

HEAD = (
    "variant", "cache", "naive dB", "layer dB", "reuse dB", "on the plain model dB", "naive over plain",
    "loss over plain", "in the median picture", "in the latent behind the last cached step", "over the cache's own",
    "loss over reuse", "naive, against plain dB", "layer, against plain dB",
)  # fmt: skip
SHARES = (
    "naive over plain", "loss over plain", "typical over plain", "carried over plain", "loss over the cache's own",
    "loss over reuse",
)  # fmt: skip
ALONE = ("variant", "dB against the plain model")


def page(record: Mapping[str, Any], alone: Mapping[str, float]) -> str:
    """The whole page.

    Args:
        alone: PSNR of each variant uncached against the plain model at as many steps; empty where not measured.
    """
    protocol, machine = record["protocol"], record["machine"]
    parts = [
        f"# Caches on other models: `{protocol['model']}`",
        "Written by `benchmarks/compatibility.py`; do not edit.",
        f"{protocol['prompts']} prompts, each with its own seed, one batch; {machine['device']}, {machine['threads']} "
        "threads. A cache's loss is the mean squared error of its pictures against the same variant uncached; dB are "
        "its PSNR. `As called` is `cache(NAME)` with 12 full steps of 50, 5 of 8; the others are published readings on "
        "even steps, 12 of 50 and 4 of 8, joined naively and through the layer. `Plain` is the plain model at as many "
        "steps, under the same cache with the layer, `the cache's own` the same without it (they differ only at 8 "
        'steps). "In the latent behind the last cached step" is the loss there over the plain model\'s: from there on '
        "no cache acts, and what still grows is what the variant itself makes of it. W6A6 and noise are simulated, to "
        "show what breaks, and so are full steps in pairs.",
        table(HEAD, [_cells(line, record["rows"]) for line in ratios(record["rows"])]),
    ]
    if alone:
        parts += ["What each variant loses alone:", table(ALONE, [[name, f"{v:.1f}"] for name, v in alone.items()])]
    if cost := record["prepared"].get("layer"):
        parts.append(f"The layer takes {cost['share']:.2%} of a step that runs in full.")
    marks = [(t["name"], f"{t['value']:.3g}", f"{t['op']} {t['target']:g}", "met" if t["met"] else "**missed**")
             for t in record["targets"]]  # fmt: skip
    parts.append(table(("target", "value", "asked", ""), marks))
    return "\n\n".join(parts) + "\n"


def _cells(line: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    by = {row["kind"]: row for row in rows if (row["variant"], row["method"]) == (line["variant"], line["cache"])}
    figures = [line[name] for name in ("naive PSNR", "PSNR", "reuse PSNR", "plain PSNR")]
    shares = [line[name] for name in SHARES]
    against = [by[kind]["against the plain model"] if kind in by else None for kind in ("naive", "layer")]
    return [
        str(line["variant"]), str(line["cache"]), *(_number(x, "{:.1f}") for x in figures),
        *(_number(x, "{:.2f}x") for x in shares), *(_number(x, "{:.1f}") for x in against),
    ]  # fmt: skip


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
