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

from stack.compare.chart import cost, overlap, place, top_of
from stack.compare.compare import Outcome
from stack.compare.files import save_outcome
from stack.compare.grid import CELL, GAP, HEAD, LABEL, MARGIN, draw_grid, grid_size, to_image
from stack.compare.html import strip
from stack.compare.table import footnotes, print_table, verdicts
from stack.measure.style import STEPS


def outcome_of(comparison: Any, engine: Any = None) -> Outcome:
    measurement, record = comparison(engine)
    pictures = {name: m.pictures for name, m in measurement.rows.items() if m.generations}
    return Outcome(record, pictures, {"balanced": "1. quantize: int8 <fast>"})


def test_everything_is_written(comparison: Any, tmp_path: Path) -> None:
    outcome = outcome_of(comparison)
    written = save_outcome(outcome, tmp_path / "out", tmp_path / "elsewhere" / "x.json")
    assert [path.name for path in written] == ["compare.json", "x.json", "grid.png", "chart.png", "report.html"]
    first, second = (json.loads(path.read_text()) for path in written[:2])
    assert first == second and len(first["rows"]) == 10
    assert Image.open(tmp_path / "out" / "grid.png").size == grid_size(10, 3)
    assert Image.open(tmp_path / "out" / "chart.png").size == (1440, 870)


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


def test_report_needs_nothing_else(comparison: Any, tmp_path: Path) -> None:
    save_outcome(outcome_of(comparison), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "http" not in page and "<script" not in page and "@import" not in page
    assert re.findall(r'src="(.{22})', page) == ["data:image/png;base64,"] * 2
    assert "1. quantize: int8 &lt;fast&gt;" in page
    assert page.count("<rect") == 8 * 50 + 2 * 5  # one box per step of every row
    assert page.count(f'fill="{STEPS["cached"]}"') == 4 * 45  # four rows with a cache, 45 cached steps each


def test_an_interruption_leaves_all_files(comparison: Any, make_engine: Any, tmp_path: Path) -> None:
    written = save_outcome(outcome_of(comparison, make_engine(stop_after=12)), tmp_path / "some")
    assert len(written) == 4
    assert json.loads(written[0].read_text())["partial"] is True
    assert "Interrupted" in written[-1].read_text()
    nothing = save_outcome(outcome_of(comparison, make_engine(stop_after=0)), tmp_path / "none")
    assert [path.name for path in nothing] == ["compare.json", "report.html"]


@pytest.mark.parametrize("width", [80, 120])
def test_table_shows_every_row_in_full(comparison: Any, width: int) -> None:
    _, record = comparison()
    console = Console(width=width, record=True, file=io.StringIO())
    print_table(record, console)
    text = console.export_text()
    for row in record["rows"]:
        assert f" {row['name']} " in text
    assert "10.00x" in text and "5 of 50" in text
    assert max(len(line.rstrip()) for line in text.splitlines() if "│" in line) <= width
    assert ("by work" in text) == (width == 120)


def test_footnotes_say_how_the_passes_go_together(comparison: Any) -> None:
    _, record = comparison()
    notes = footnotes(record)
    assert "efficiency 0.80: speedup of all / product of the passes alone" in notes
    assert any(note.startswith("interaction +8.0 dB") for note in notes)
    assert any(note.startswith("warning, all-quantize: identical to base") for note in notes)


def test_the_verdict_names_the_better_control() -> None:
    def row(name: str, group: str, psnr: float, speedup: float) -> dict[str, Any]:
        role = "control" if group == "control" else "stack"
        point = {"psnr_db": psnr, "speedup": speedup}
        return {"name": name, "group": group, "role": role, "recipe": "r", "same_as": None, **point}

    controls = [row("fewer-steps", "control", 30.0, 4.1), row("fewer-steps-multistep", "control", 36.0, 4.0)]
    (lost,) = verdicts({"rows": [row("all", "all", 33.5, 4.05), row("cache", "alone", 20.0, 4.0), *controls]})
    assert lost == ("all is 2.5 dB BELOW its better control, fewer-steps-multistep: 33.5 dB at 4.05x, 36.0 dB at 4.00x")
    (won,) = verdicts({"rows": [row("all", "all", 40.0, 4.05), *controls]})
    assert won.startswith("all is 4.0 dB above its better control, fewer-steps-multistep")
    assert verdicts({"rows": [row("all", "all", 40.0, 4.05)]}) == []


def test_strip_draws_one_box_per_step() -> None:
    drawn = strip(["full", "cached", "cached"], [1.0, 0.0, 0.0])
    assert re.findall(r'fill="(#\w+)"', drawn) == [STEPS["full"], STEPS["cached"], STEPS["cached"]]


def test_a_partial_step_is_filled_by_what_it_computed() -> None:
    drawn = strip(["partial"], [0.4], height=15)
    boxes = re.findall(r'y="([\d.]+)" width="12" height="([\d.]+)" fill="(#\w+)"', drawn)
    assert boxes == [("0", "15", STEPS["cached"]), ("9", "6", STEPS["partial"])]
    assert "step 0: partial, 40% computed" in drawn


def test_labels_avoid_each_other_and_the_edge() -> None:
    frame = (0.0, 0.0, 100.0, 100.0)
    right, left = place(90, 50, 30, 10, 1), place(90, 50, 30, 10, -1)
    assert right == (90, 45, 120, 55) and left == (60, 45, 90, 55)
    assert place(50, 50, 30, 10, 0) == (35, 45, 65, 55)
    assert cost(right, [], frame) == 2000 and cost(left, [], frame) == 0
    assert cost(left, [(80, 50, 95, 60)], frame) == 50
    assert overlap((0, 0, 2, 2), (2, 0, 4, 2)) == 0


def test_identical_pictures_do_not_stretch_the_chart() -> None:
    assert top_of([30.0, 50.0, 99.0]) == pytest.approx(52.4)
    assert top_of([99.0]) == 99.0
