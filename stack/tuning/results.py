"""A finished search in words and as data: a verdict, a table, tune.json and a picture of the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..comparison.console import print_fitting
from ..comparison.record import machine, save_json
from ..core.files import answers_another, folder_for, write_text
from ..core.progress import counted
from ..core.versions import versions
from ..recipe import recipe_toml
from .front import quality
from .study import Tried
from .tune import Tuned

COLUMNS = ("stack", "speedup", "quality", "flipped", "seconds", "GB", "")
MARKS = ((16, "#9aa5b1"), (36, "#1f6feb"))  # size and colour of what was tried, and of what was checked
NUMBERS = ("speedup", "flipped", "seconds", "GB")
DEFAULT_FOLDER = Path("ditstack-tune")
RECIPE, RECORD, PICTURE = "tuned.toml", "tune.json", "front.png"


def named(stages: Mapping[str, Mapping[str, Any]]) -> str:
    """Stages as one would call them: "int8 + sparse_attn keep 0.5 + svd, 5 full steps"."""
    return " + ".join(_stage(name, options) for name, options in stages.items()) or "no stack"


def _stage(name: str, options: Mapping[str, Any]) -> str:
    if name == "quantize":
        return str(options["scheme"])
    if name == "cache":
        calibrated = "calibrated" if options.get("full_steps") else "full steps"
        count = len(options.get("full_steps", ())) or options.get("count", "")
        return f"{options['method']}, {count} {calibrated}"
    if name == "solver":
        how = " fitted" if options.get("corrections") else " searched" if options.get("places") else ""
        return f"solver, {len(options.get('places', ())) or options['steps']} steps{how}"
    return " ".join([name, *(f"{key} {value}" for key, value in options.items())])


def verdict(found: Tuned) -> str:
    """What the search came to, in one sentence: what was found, its speed and its quality against the plain model."""
    chosen, asked = found.chosen, found.limits.words
    if chosen is None:
        return (
            f"stopped before anything was checked for {asked}; the same command goes on from {len(found.tried)} tried"
        )
    figures = f"{chosen.figures.speedup:.2f}x as fast as the plain model, {_quality(chosen)} on held-out prompts"
    if chosen.excess:
        return f"nothing that was tried keeps {asked}; the nearest is {named(chosen.stages)}: {figures}"
    close = ", to a tenth of a dB" if (chosen.figures.psnr or 0) < found.limits.min_psnr else ""
    return f"{named(chosen.stages)}: {figures}, within {asked}{close}"


def _quality(one: Tried) -> str:
    figures = one.figures
    if figures.psnr is not None:
        return f"{figures.psnr:.1f} dB" + (f", LPIPS {figures.lpips:.3f}" if figures.lpips is not None else "")
    return "unknown quality" if figures.error is None else f"error {figures.error:.3g}"


def lines(found: Tuned) -> list[tuple[str, ...]]:
    """The rows of the table under `COLUMNS`: what was checked on held-out prompts, the fastest first."""
    return [_line(one, found) for one in sorted(found.checked, key=lambda each: -each.figures.speedup)]


def _line(one: Tried, found: Tuned) -> tuple[str, ...]:
    figures, mark = one.figures, "chosen" if one is found.chosen and not one.excess else ""
    flipped = f"{100 * figures.flipped:.0f} %" if figures.psnr is not None else "-"
    note = "beyond the limits" if one.excess else mark
    memory = f"{figures.gigabytes:.2f}" if figures.gigabytes else "-"
    shown = (named(one.stages), f"{figures.speedup:.2f}x", _quality(one), flipped, f"{figures.seconds:.2f}")
    return (*shown, memory, note)


def print_front(found: Tuned, console: Console) -> None:
    """The verdict, the table of what was checked, and what the table alone does not say."""
    console.print(Text(verdict(found), style="bold"))
    if not found.checked:
        return
    table = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="right" if name in NUMBERS else "left", no_wrap=name != COLUMNS[0])
    for line in lines(found):
        table.add_row(*line)
    print_fitting(console, table, COLUMNS, lines(found))
    samples, refused = found.checked[0].figures.samples, f", {found.refused} did not run" if found.refused else ""
    plain = f"the plain model, {found.base_mode}, takes {found.base_seconds:.2f} s"
    told = f"medians over {counted(samples, 'held-out picture')}; {plain}; {len(found.tried)} tried{refused}"
    console.print(Text(told, style="dim"))


def record(found: Tuned, model: str, device: str) -> dict[str, Any]:
    """The contents of tune.json."""
    return {
        "model": model, "limits": found.limits.given, "verdict": verdict(found), "partial": found.partial,
        "base_seconds": found.base_seconds, "base_mode": found.base_mode, "refused": found.refused,
        "chosen": None if found.chosen is None else _data(found.chosen), "checked": _all(found.checked),
        "tried": _all(found.tried), "machine": machine(device), "versions": versions(),
    }  # fmt: skip


def _all(found: Sequence[Tried]) -> list[dict[str, Any]]:
    return [_data(one) for one in found]


def _data(one: Tried) -> dict[str, Any]:
    about = {"name": named(one.stages), "how": one.how, "excess": one.excess}
    return {**about, **asdict(one.figures), "stages": one.stages}


def folder_of(out: Path | None, model: str, limits: Mapping[str, float]) -> Path:
    """The folder to write to, see `stack.core.files.folder_for`."""
    asked = {"model": model, "limits": {name: value for name, value in limits.items() if value}}

    def holds(folder: Path) -> str:
        return f"another tuning ({RECORD} says which)" if answers_another(folder / RECORD, asked) else ""

    return folder_for(out, DEFAULT_FOLDER, holds)


def save(found: Tuned, folder: Path, model: str, device: str) -> list[Path]:
    """Write the recipe, where there is one, the record and the picture; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / RECORD]
    save_json(record(found, model, device), written[0])
    if found.recipe is not None:
        written.append(folder / RECIPE)
        write_text(written[-1], recipe_toml(found.recipe))
    if found.tried:
        written.append(folder / PICTURE)
        draw(found, written[-1])
    return written


def draw(found: Tuned, path: Path) -> None:
    """Quality over speedup: what was tried, what was checked, and the front among it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    kinds = {"tried, on the prompts searched on": found.tried, "checked, on held-out prompts": found.checked}
    for (kind, each), (size, colour) in zip(kinds.items(), MARKS, strict=True):
        x, y = [one.figures.speedup for one in each], [quality(one) for one in each]
        axes.scatter(x, y, s=size, color=colour, label=kind)
    for one in found.front:
        label = named(one.stages).replace(" + ", "\n")
        at = (one.figures.speedup, quality(one))
        axes.annotate(label, at, xytext=(4, 4), textcoords="offset points", fontsize=6.5)
    if found.limits.min_psnr:
        axes.axhline(found.limits.min_psnr, color="#b42318", linewidth=1, label=f"min_psnr={found.limits.min_psnr:g}")
    axes.set_xlabel("speedup over the model without a stack")
    axes.set_ylabel("relative error of latents, negative" if found.limits.max_error else "PSNR in dB, median")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    FigureCanvasAgg(figure).print_png(path)
