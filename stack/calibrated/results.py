"""What `ditstack calibrate` leaves behind: calibrated.toml, calibrate.json and curve.png, in a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..calibration.calibration import Calibration
from ..calibration.curve import front
from ..calibration.goals import Goal
from ..comparison.record import machine, save_json
from ..core.files import answers_another, folder_for, json_text, whole, write_text
from ..core.versions import versions
from ..measure.style import FAINT, GROUPS, INK, LINE, PAPER
from ..recipe import Recipe, recipe_toml
from ..runtime.call_arguments import Call, call_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECIPE, RECORD, PICTURE = "calibrated.toml", "calibrate.json", "curve.png"
DEFAULT_FOLDER = Path("ditstack-calibrate")
TRIED, CHOSEN = GROUPS["alone"][1], GROUPS["all"][1]


def question(recipe: Recipe, model: str, prompts: Sequence[Any], goal: Goal, seed: int, call: Call) -> dict[str, Any]:
    """What a calibration is asked, as its record has it: two with the same question may share a folder."""
    asked = {
        "recipe": recipe.name, "stages": recipe.stages, "steps": recipe.steps, "model": model,
        "prompts": list(map(str, prompts)), "goal": vars(goal), "seed": seed, "call": call_words(call),
    }  # fmt: skip
    return dict(json.loads(json_text(asked)))


def record(found: Recipe, result: Calibration, asked: Mapping[str, Any], device: str) -> dict[str, Any]:
    """The contents of calibrate.json."""
    return {
        "asked": dict(asked), "verdict": str(result), "full_steps": list(result.full_steps), "full": result.full,
        "psnr_db": result.psnr_db, "held_out_psnr_db": result.held_out_psnr_db, "kept": result.kept,
        "interrupted": result.interrupted, "curve": [asdict(point) for point in result.curve],
        "stages": found.stages, "notes": found.notes, "machine": machine(device), "versions": versions(),
    }  # fmt: skip


def folder_of(out: Path | None, asked: Mapping[str, Any]) -> Path:
    """The folder to write to, see `stack.core.files.folder_for`."""

    def holds(folder: Path) -> str:
        nameless = (folder / RECIPE).exists() and not (folder / RECORD).exists()
        other = nameless or answers_another(folder / RECORD, {"asked": asked})
        return f"another calibration ({RECORD} says which)" if other else ""

    return folder_for(out, DEFAULT_FOLDER, holds)


def save(data: Mapping[str, Any], found: Recipe, result: Calibration, goal: Goal, folder: Path) -> list[Path]:
    """Write the recipe, the curve and the record, in this order; returns their paths.

    Args:
        data: see `record`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recipe, picture, kept = folder / RECIPE, folder / PICTURE, folder / RECORD
    write_text(recipe, recipe_toml(found))
    with whole(picture) as made:
        curve_figure(result, goal).savefig(made, format="png")
    save_json(data, kept)
    return [recipe, picture, kept]


def curve_figure(result: Calibration, goal: Goal) -> Figure:
    """PSNR over full steps: the points that were measured, the choice, its held-out PSNR, and the limit as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=120, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    best = front(result.curve)
    axes.plot([p.full for p in best], [p.psnr_db for p in best], "-", color=TRIED, label="best with so many or fewer")
    for point in result.curve:
        filled = "full" if point in best else "none"
        axes.plot([point.full], [point.psnr_db], "o", color=TRIED, markersize=5, fillstyle=filled, label="_")
        words = f"{point.psnr_db:.1f} dB" + ("\ntried once" if point.tried == 1 else "")
        place: dict[str, Any] = {"xytext": (7, -4), "textcoords": "offset points", "va": "top"}
        axes.annotate(words, (point.full, point.psnr_db), **place, fontsize=8, color=INK)
    axes.plot([result.full], [result.psnr_db], "o", color=CHOSEN, markersize=8, label="chosen")
    if result.checked:
        axes.plot([result.full], [result.held_out_psnr_db], "D", color=CHOSEN, fillstyle="none", label="held out")
    if goal.min_psnr:
        axes.axhline(goal.min_psnr, color=INK, linewidth=1, linestyle="--", label=goal.words)
    elif goal.words:
        axes.axvline(result.full, color=INK, linewidth=1, linestyle="--", label=goal.words)
    axes.set_xlabel(f"full steps of {result.steps}", color=INK)
    axes.set_ylabel("PSNR in dB, mean over pictures", color=INK)
    axes.margins(x=0.12, y=0.15)
    axes.locator_params(axis="x", integer=True)
    axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=8)
    axes.grid(color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure
