from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from stack.comparison.files import save_outcome
from stack.comparison.grid import CELL, GAP, HEAD, LABEL, MARGIN, draw_grid, grid_size, to_image
from stack.comparison.outcome import Comparison
from stack.comparison.record import visible
from stack.comparison.table import HEADINGS, cells, footnotes, print_table
from stack.comparison.verdict import verdict


def outcome_of(comparison: Any, engine: Any = None) -> Comparison:
    measurement, record = comparison(engine)
    pictures = {name: m.pictures for name, m in measurement.rows.items() if m.generations}
    return Comparison(record, pictures, {"balanced": "1. quantize: int8 <fast>"})


def test_everything_is_written(comparison: Any, tmp_path: Path) -> None:
    outcome = outcome_of(comparison)
    written = save_outcome(outcome, tmp_path / "out")
    names = ["compare.json", "table.md", "grid.png", "product.png", "chart.svg", "report.html"]
    assert [path.name for path in written] == names
    assert len(json.loads(written[0].read_text())["rows"]) == 16
    assert written[1].read_text() == outcome.markdown()
    assert Image.open(tmp_path / "out" / "grid.png").size == grid_size(10, 3)
    assert (tmp_path / "out" / "chart.svg").read_text().count("data-row=") == 9  # all rows but the base


def test_grid_holds_the_right_picture_in_the_right_place(comparison: Any) -> None:
    outcome = outcome_of(comparison)
    outcome.pictures["quantize"][2] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    sheet = draw_grid(outcome.record, outcome.pictures)
    assert sheet.size == (2 * MARGIN + LABEL + 3 * CELL + 2 * GAP, 2 * MARGIN + HEAD + 10 * CELL + 9 * GAP)
    x, y = MARGIN + LABEL + 2 * (CELL + GAP) + CELL // 2, MARGIN + HEAD + (CELL + GAP) + CELL // 2
    assert sheet.getpixel((x, y)) == (255, 0, 0)
    assert sheet.getpixel((x, y - CELL - GAP)) != (255, 0, 0)


def test_pictures_keep_their_shape_in_the_grid() -> None:
    wide = to_image(torch.zeros(3, 8, 16), 64)
    assert wide.size == (64, 64)
    assert wide.getpixel((32, 32)) == (0, 0, 0) and wide.getpixel((32, 4)) == (255, 255, 255)
    assert to_image(torch.full((3, 4, 4), float("nan"))).getpixel((0, 0)) == (0, 0, 0)


def test_a_row_whose_steps_are_not_known_has_its_place_everywhere(comparison: Any, tmp_path: Path) -> None:
    outcome = outcome_of(comparison)
    row = next(row for row in outcome.record["rows"] if row["name"] == "cache")
    row.update(role="peer", group="peer", steps=None, full_steps=None, flops_speedup=None, kinds=[], computed=[])
    save_outcome(outcome, tmp_path)
    assert Image.open(tmp_path / "grid.png").size == grid_size(10, 3)
    assert cells(row)[HEADINGS.index("full steps")] == cells(row)[HEADINGS.index("by work")] == "-"


def test_an_interruption_leaves_all_files(comparison: Any, make_engine: Any, tmp_path: Path) -> None:
    written = save_outcome(outcome_of(comparison, make_engine(stop_after=12)), tmp_path / "some")
    assert len(written) == 6
    assert json.loads(written[0].read_text())["partial"] is True
    assert "Interrupted" in written[-1].read_text()
    nothing = save_outcome(outcome_of(comparison, make_engine(stop_after=0)), tmp_path / "none")
    assert [path.name for path in nothing] == ["compare.json", "table.md", "report.html"]


@pytest.mark.parametrize("width", [80, 120, 150])
def test_table_shows_every_row_in_full(comparison: Any, width: int) -> None:
    _, record = comparison()
    console = Console(width=width, record=True, file=io.StringIO())
    print_table(record, console)
    text = console.export_text()
    for row in visible(record):
        assert re.search(rf"^\W*{re.escape(row['name'])}(\W|$)", text, re.MULTILINE), row["name"]
    assert text.splitlines()[0].startswith(verdict(record)[:60])
    assert "10.00x" in text and "5 of 50" in text
    assert max((len(line.rstrip()) for line in text.splitlines() if "│" in line), default=0) <= width
    assert ("by work" in text) == ("memory" in text) == (width == 150)
    assert ("10.00x ±" in text) == (width >= 120)


def test_an_interval_wider_than_its_figure_is_no_figure(comparison: Any) -> None:
    row = comparison()[1]["rows"][1]
    speedup = HEADINGS.index("speedup")
    assert cells({**row, "speedup": 1.25, "speedup_95": [1.0, 1.6]})[speedup] == "1.25x ±0.30"
    assert cells({**row, "speedup": 1.25, "speedup_95": [0.1, 15.0]})[speedup] == "1.25x ±?"


def test_footnotes_say_how_the_passes_go_together(comparison: Any) -> None:
    _, record = comparison()
    notes = footnotes(record)
    assert "efficiency 0.80: speedup of all / product of the passes alone" in notes
    assert any(note.startswith("interaction +8.0 dB") for note in notes)
    assert any(note.startswith("warning, all-quantize: identical to base") for note in notes)
