"""attention-000.png: what sparse attention kept in one picture, by layer and step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import StackError
from ..core.plan import Plan
from ..measure.figure import new_figure, save_figure
from ..measure.style import FAINT, INK, LINE
from ..runtime.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAGE = "sparse_attn"
PANELS = {"kept": "key blocks kept", "mass": "softmax mass kept (sampled queries)"}
ROW, LEAST = 0.2, 1.6  # height of a layer and of what is around them, in inches


def check_map(plan: Plan, option: str) -> None:
    """Refuse to draw before anything runs.

    Raises:
        StackError: the plan has no sparse attention; the message has its reason.
    """
    if any(one.stage == STAGE for one in plan.passes()):
        return
    why = next((str(finding) for finding in plan.findings if finding.stage == STAGE), "the recipe has no sparse_attn")
    raise StackError(f"{option}: expected a stack with sparse attention: {why}")


def kept_by_layer(report: Report) -> tuple[list[str], dict[str, np.ndarray]]:
    """Layers in running order and, by panel, shares (layers, steps) in [0, 1]: NaN in a step without a call of the
    layer, as cached ones are. Panels of which nothing was measured are left out.

    Raises:
        StackError: the last call had no sparse attention.
    """
    by_layer = report.passes.get(STAGE, {}).get("by_layer")
    if not by_layer:
        raise StackError("no map of attention to draw: expected a report of a run with sparse_attn(), got none of it")
    kept = _table([figures["kept"] for figures in by_layer.values()])
    mass = 1 - _table([figures["dropped_mass"] for figures in by_layer.values()])
    sparse = np.isfinite(kept) & (kept < 1)
    panels = {"kept": kept} | ({"mass": mass} if np.isfinite(mass[sparse]).any() else {})
    return list(by_layer), panels


def attention_figure(report: Report) -> Figure:
    """A heat map per panel of `kept_by_layer`, on one scale from 0 to 1."""
    layers, panels = kept_by_layer(report)
    size = (4.8 * len(panels) + 2.4, LEAST + ROW * len(layers))
    figure = new_figure(*size, dpi=150)
    shown = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, values) in zip(shown, panels.items(), strict=True):
        _panel(axes, PANELS[name], values)
    shown[0].set_yticks(range(len(layers)), layers, fontsize=7)
    bar = figure.colorbar(shown[0].images[0], ax=list(shown), label="share")
    bar.ax.tick_params(colors=FAINT, labelcolor=INK, labelsize=8)
    return figure


def save_attention_map(report: Report, path: Path) -> None:
    """Draw and write it.

    Raises:
        StackError: see `kept_by_layer`.
    """
    figure = attention_figure(report)
    save_figure(figure, path)


def _panel(axes: Any, title: str, values: np.ndarray) -> None:
    axes.imshow(np.ma.masked_invalid(values), vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="nearest")
    axes.set_facecolor(LINE)  # steps without a call
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel("step", fontsize=9, color=INK)
    axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=8)


def _table(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Rows of numbers as an array (layers, steps), NaN for None."""
    return np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=float)
