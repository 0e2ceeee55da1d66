"""Figures of the benchmarks: drawn from records, with names that hide nothing."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import redraw
from cachebench.plot import KINDS, OWN, draw, drawn, kind_of, numbered, short
from cachebench.targets import measured, over_controls
from PIL import Image

from stack.comparison.report.axes import overlap
from stack.measure.figure import new_figure, save_figure, save_small

from .test_targets import CONTROLS, line

FIGURES = Path(__file__).parents[2] / "docs" / "benchmarks"
LARGEST = 150_000  # bytes of a figure of the pages


def test_the_plot_numbers_the_front_the_calibrated_and_each_familys_best(tmp_path: Path) -> None:
    caches = [
        line("svd calibrated, 9", "ours", 5.0, 46.0), line("fora, 9", "preset", 3.0, 33.0, family="fora"),
        line("fora, 12", "preset", 2.5, 34.0, family="fora"), line("cache-dit, 9 (best of 7)", "cache-dit", 2.0, 55.0),
        line("fora-published, 9", "preset", 3.0, 30.0, family="fora-published"),
    ]  # fmt: skip
    caches = over_controls([*caches, *CONTROLS])[:5]
    assert numbered(caches, {3}) == {0: 1, 1: 2, 4: 3, 3: 4}  # own first, then as published, then others' code
    assert [short(row) for row in caches[3:]] == ["cache-dit, 9", "fora, 9"]
    draw(caches, "title", tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as made:
        assert made.mode == "P" and made.width == 1265 and made.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
    draw([], "title", tmp_path / "y.png")
    assert not (tmp_path / "y.png").exists()


@pytest.mark.parametrize("model", ["shapes-dit", "shapes-flux", "shapes-video"])
def test_no_number_hides_another(model: str) -> None:
    rows = json.loads((FIGURES / f"caches-{model}.json").read_text())["rows"]
    figure = drawn(rows, model)
    axes, key = figure.axes
    shown = [text for text in axes.texts if text.get_gid() == "number"]
    boxes = [(box.x0, box.y0, box.x1, box.y1) for box in (text.get_window_extent() for text in shown)]
    area = axes.get_window_extent()
    frame = (area.x0, area.y0, area.x1, area.y1)
    assert len(shown) > 25
    assert [pair for pair in combinations(boxes, 2) if overlap(*pair) > 4] == []  # square pixels
    assert all(overlap(box, frame) > 0.9 * (box[2] - box[0]) * (box[3] - box[1]) for box in boxes)
    written = {text.get_text() for text in key.texts}
    assert {text.get_text() for text in shown} < written
    assert [words for words, _, _ in KINDS.values() if words in written] == [
        KINDS[kind][0] for kind in KINDS if any(kind_of(row) == kind for row in measured(rows))
    ]


def test_own_marks_are_filled_and_others_hollow() -> None:
    rows = over_controls([line(kind, kind, 2.0, 40.0, family=kind) for kind in KINDS if kind != "published"])
    figure = drawn([*rows, {**rows[0], "group": "preset", "family": "x-published"}], "title")
    filled = {words for words, *_ in (KINDS[kind] for kind in OWN)}
    key = figure.axes[1]
    marks = [bool((mark.get_facecolors()[0, :3] == mark.get_edgecolors()[0, :3]).all()) for mark in key.collections]
    headings = [text.get_text() for text in key.texts if text.get_weight() == "bold"]
    assert len(headings) == len(KINDS) and [name in filled for name in headings] == marks


def test_every_figure_is_drawn_from_its_record(tmp_path: Path) -> None:
    redraw.main(tmp_path)
    names = {path.name for path in FIGURES.glob("*.png") if not path.name.startswith("distill-")}
    assert {path.name for path in tmp_path.iterdir()} == names and len(names) == 7
    for path in (*tmp_path.iterdir(), *FIGURES.glob("*.png")):
        assert 10_000 < path.stat().st_size < LARGEST, path
    for name in names:
        with Image.open(tmp_path / name) as made, Image.open(FIGURES / name) as kept:
            assert made.size == kept.size, name


def test_small_pictures_have_few_colours_and_figures_all(tmp_path: Path) -> None:
    figure = new_figure(2, 1, dpi=100)
    axes: Any = figure.subplots()
    axes.imshow([[i / 400 for i in range(400)]], aspect="auto", cmap="viridis")
    save_figure(figure, tmp_path / "all.png")
    with Image.open(tmp_path / "all.png") as made:
        assert made.size == (200, 100)
        save_small(made, tmp_path / "few.png")
        every = len(made.convert("RGB").getcolors(10**6) or [])
    with Image.open(tmp_path / "few.png") as made:
        few = made.convert("RGB").getcolors(10**6) or []
        assert len(few) <= 128 and made.mode == "P" and every > len(few)
