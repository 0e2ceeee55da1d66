"""Records as Markdown: docs/benchmarks/gpu.md. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cachebench.page import table

from .journal import Line, is_measured
from .targets import speedup, targets

Record = Mapping[str, Any]
Column = tuple[str, Callable[[Line], Any]]

HOW = (
    "`python benchmarks/gpu_check.py` measures, `python benchmarks/gpu_page.py runs/gpu` writes this page; "
    "[how, step by step](../../benchmarks/gpu/README.md)."
)
NOTHING = f"Nothing was measured on a GPU yet: {HOW}"
SMOKE = (
    "The trained `shapes-flux`. PSNR in dB against the same computed on a CPU, or against the base on a CPU where a "
    "CPU cannot compute it; the references are in half precision, and say nothing above 80 dB. `reads`: how often the "
    "host waited for the device in one request. Steps: F full, c cached, p partial."
)
MICRO = (
    "Medians of single calls, by CUDA events. Attention of 24 heads of 128 in bf16; TFLOP/s count the scores that are "
    "computed. 8-bit products are bare: without rounding inputs and scaling outputs."
)
WHOLE = (
    "FLUX.1-dev's shape with random weights: time and memory, no quality. The denoising loop alone: no text encoders, "
    "no VAE. Medians of requests, by CUDA events, after a warm-up that is in its own column with everything that is "
    "compiled or tuned. Speedups are of the mean time of a step, over the bf16 pipeline as it is and over the fastest "
    "one compiled block by block, whichever kernel computes its attention. Host: what the host spends in a denoiser "
    "call with the device's queue empty before it. Peak: memory allocated in the measured requests."
)


def page(records: Sequence[Record]) -> str:
    """The whole page, a section per machine."""
    parts = ["# On a GPU", "Written by `benchmarks/gpu_page.py`; do not edit."]
    parts += [HOW, *(text for record in records for text in of_machine(record))] if records else [NOTHING]
    return "\n\n".join(parts) + "\n"


def of_machine(record: Record) -> list[str]:
    """What one machine measured."""
    lines = record["rows"]
    name = record["machine"]["vector"] if record["machine"]["device"] == "cuda" else "A CPU"
    versions = ", ".join(f"{key} {value}" for key, value in record["versions"].items())
    parts = [f"## {name}", f"{versions}."]
    if record["tiny"]:
        parts.append("**A dry run: small models, few steps. These figures mean nothing.**")
    parts += ["### Targets", _targets(lines)]
    sections: tuple[tuple[str, str, str, Sequence[Column]], ...] = (
        ("flux", "FLUX.1-dev's shape, 1,024 x 1,024", WHOLE, whole_columns(lines)),
        ("large", "FLUX.1-dev's shape, 2,048 x 2,048", WHOLE, whole_columns(lines)),
        ("smoke", "Every pass against a CPU", SMOKE, SMOKE_COLUMNS),
        ("micro", "Kernels", MICRO, MICRO_COLUMNS),
    )
    for part, title, text, columns in sections:
        parts += [f"### {title}", *_section([line for line in lines if line["part"] == part], text, columns)]
    return parts


def _targets(lines: Sequence[Line]) -> str:
    known, missing = targets(lines)
    rows = [
        [t.name, f"{t.value:.3g}", f"{t.op} {t.target:g}", "met" if t.met else "**missed**"] for t in known
    ]  # fmt: skip
    rows += [[name, "-", "-", "not measured"] for name in missing]
    return table(("target", "value", "asked", ""), rows)


def _section(lines: Sequence[Line], text: str, columns: Sequence[Column]) -> list[str]:
    measured = [line for line in lines if is_measured(line)]
    rest = [line for line in lines if not is_measured(line)]
    if not measured:
        parts = ["Not measured."]
    else:
        cells = [[cell(value(line)) for _, value in columns] for line in measured]
        parts = [text, table([name for name, _ in columns], cells)]
    if rest:
        parts.append("\n".join(f"- {line['row']}: {_why(line)}" for line in rest))
    return parts


def _why(line: Line) -> str:
    """Why a row has no figures."""
    if "error" in line:
        return f"**{line['error'].splitlines()[0]}** ({line['where'][-1]})"
    return f"skipped, {line['skipped']}" if "skipped" in line else "interrupted"


def cell(value: Any) -> str:
    """A figure as it is read."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def got(key: str) -> Callable[[Line], Any]:
    """A figure by name; None where a row has none."""
    return lambda line: line.get(key)


def times(kind: str, lines: Sequence[Line]) -> Callable[[Line], str | None]:
    """A speedup over a base, such as "8.21x"."""

    def told(line: Line) -> str | None:
        value = speedup(line, lines, kind)
        return None if value is None else f"{value:.2f}x"

    return told


def whole_columns(lines: Sequence[Line]) -> list[Column]:
    """Columns of the whole models."""
    return [
        ("row", got("row")), ("steps", got("steps")), ("full", got("full")), ("s", got("seconds")),
        ("ms/step", got("step_ms")), ("over eager", times("eager", lines)), ("over compiled", times("compiled", lines)),
        ("host, full, ms", got("host_full_ms")), ("host, cached, ms", got("host_cached_ms")),
        ("peak GB", got("peak_gb")), ("put on, s", got("put_seconds")), ("warm-up, s", got("warm_up_seconds")),
        ("finite", got("finite")),
    ]  # fmt: skip


SMOKE_COLUMNS: list[Column] = [
    ("row", got("row")), ("dtype", got("dtype")), ("PSNR", got("psnr")), ("against", got("against")),
    ("steps", got("kinds")), ("reads", got("reads")), ("repeats", got("repeats")), ("undone", got("undone")),
    ("finite", got("finite")), ("s", got("seconds")), ("first, s", got("first_seconds")),
]  # fmt: skip
MICRO_COLUMNS: list[Column] = [
    ("row", got("row")), ("ms", got("ms")), ("TFLOP/s", got("tflops")), ("density", got("density")),
    ("map, ms", got("map_ms")), ("error", got("error_share")),
]  # fmt: skip
