"""Writes what a comparison leaves behind."""

from __future__ import annotations

from pathlib import Path

from ..core.files import whole, write_text
from .chart import save_chart
from .compare import Outcome
from .grid import draw_grid
from .html import report_html
from .record import save_json


def save_outcome(outcome: Outcome, folder: Path, json: Path | None = None) -> list[Path]:
    """Write compare.json, grid.png, chart.png and report.html; of an interrupted comparison what there is to show.

    Args:
        json: where else compare.json should go.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "compare.json"] + ([json] if json else [])
    for path in written:
        save_json(outcome.record, path)
    grid, chart = folder / "grid.png", folder / "chart.png"
    if outcome.pictures:
        with whole(grid) as made:
            draw_grid(outcome.record, outcome.pictures).save(made)
        save_chart(outcome.record, chart)
        written += [grid, chart]
    else:  # those of a run before would pass for this one's
        for path in (grid, chart):
            path.unlink(missing_ok=True)
    drawn = bool(outcome.pictures)
    page = folder / "report.html"
    write_text(page, report_html(outcome.record, outcome.plans, grid if drawn else None, chart if drawn else None))
    return [*written, page]
