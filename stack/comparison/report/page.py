"""Renders the page from the record, and the plot that stands alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from ...measure.style import GROUPS, percent, seconds, times
from ..pictures import FRAME_MS
from ..record import decibels, visible
from ..table import footnotes, warnings
from ..verdict import margins, verdict
from .figures import error_bar, memory_bars, quality_table, results_table, time_bar
from .frames import scenes
from .palette import DARK, LIGHT
from .plots import NARROW, WIDE, error_plot, speed_plot


def report_html(record: Mapping[str, Any], plans: Mapping[str, str], pictures: Mapping[str, torch.Tensor]) -> str:
    """The page. Pictures are inside it; no font, script or style comes from elsewhere.

    Args:
        plans: what each recipe does, in words.
        pictures: (B, 3, H, W) or (B, F, 3, H, W) in [0, 1] by row.
    """
    rows = visible(record)
    beside = margins(record)
    told = [*beside, *warnings(record)]
    return _environment().get_template("page.html.j2").render(
        record=record,
        rows=rows,
        title=title_of(record),
        verdict=verdict(record),
        margins=beside,
        notes=[note for note in footnotes(record) if note not in told],
        warnings=warnings(record),
        results=results_table(rows),
        quality=quality_table(rows, record["metrics"]),
        plans=plans,
        scenes=scenes(record["prompts"], rows, pictures),
        speed_plots=[speed_plot(record, size) for size in (WIDE, NARROW)],
        error_plots=[error_plot(record, size) for size in (WIDE, NARROW)],
        bars=[("Time", time_bar(record)), ("Squared error", error_bar(record))] if record["contributions"] else [],
        memory=memory_bars(rows),
        most_steps=max((len(row["kinds"]) for row in rows), default=1),
    )  # fmt: skip


def chart_svg(record: Mapping[str, Any]) -> str | None:
    """The plot of speed against quality as a file of its own, dark where its reader is; None without a row to plot."""
    plot = speed_plot(record)
    if plot is None:
        return None
    return _environment().get_template("chart.svg.j2").render(plot=plot, title=title_of(record), record=record)


def title_of(record: Mapping[str, Any]) -> str:
    """What was compared on what."""
    recipes = record["recipe"] if isinstance(record["recipe"], str) else ", ".join(record["recipe"])
    return f"{recipes} on {record['model']}"


def _environment() -> Environment:
    """Autoescape is on: names and prompts are the user's. A name that is not there is an error."""
    made = Environment(
        loader=PackageLoader("stack.comparison.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"times": times, "seconds": seconds, "percent": percent, "decibels": decibels}
    made.globals |= {
        "FRAME_MS": FRAME_MS,
        "GROUPS": GROUPS,
        "LIGHT": LIGHT,
        "DARK": DARK,
    }
    return made
