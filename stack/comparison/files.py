"""Writes what a comparison leaves behind."""

from __future__ import annotations

from pathlib import Path

from ..core.files import whole, write_text
from .grid import draw_grid
from .outcome import Comparison
from .product import save_product
from .record import save_json
from .report.page import chart_svg, report_html

FILES = ("compare.json", "table.md", "grid.png", "product.png", "chart.svg", "report.html")


def files_in(folder: Path) -> list[Path]:
    """Those of a comparison that lie in its folder."""
    return [folder / name for name in FILES if (folder / name).is_file()]


def save_outcome(outcome: Comparison, folder: Path) -> list[Path]:
    """Write compare.json, table.md, grid.png, product.png, chart.svg and report.html; interrupted, what there is.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record, table = folder / "compare.json", folder / "table.md"
    write_text(table, outcome.markdown())
    written = [record, table]
    grid, product, chart = folder / "grid.png", folder / "product.png", folder / "chart.svg"
    for path in (grid, product, chart):  # those of a run before would pass for this one's
        path.unlink(missing_ok=True)
    if outcome.pictures:
        with whole(grid) as made:
            draw_grid(outcome.record, outcome.pictures).save(made)
        written.append(grid)
        written += [product] if save_product(outcome.record, outcome.pictures, product) else []
        if drawing := chart_svg(outcome.record):
            write_text(chart, drawing)
            written.append(chart)
    page = folder / "report.html"
    write_text(page, report_html(outcome.record, outcome.plans, outcome.pictures))
    save_json(outcome.record, record)  # last: with it the comparison counts as finished
    return [*written, page]
