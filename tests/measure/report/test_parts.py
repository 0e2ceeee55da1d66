from __future__ import annotations

import base64
import io
import json
import math
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stack.comparison.contributions import contributions, squared_error
from stack.comparison.record import visible
from stack.comparison.report.axes import Axis, axis, cost, lead, overlap, place, spread
from stack.comparison.report.figures import error_bar, memory_bars, saved_words, time_bar
from stack.comparison.report.frames import sheet_of
from stack.comparison.report.palette import DARK, LIGHT, contrast
from stack.comparison.report.plots import NARROW, WIDE, error_plot, front, speed_plot, top_of


def rows_of(seconds: dict[str, float], psnr: dict[str, float]) -> dict[str, dict[str, Any]]:
    rows = {name: {"name": name, "seconds": seconds[name], "psnr_db": psnr[name]} for name in seconds}
    rows["all"]["passes"] = ["quantize", "cache"]
    return rows


TWO = rows_of(
    {"base": 10.0, "quantize": 8.0, "cache": 4.0, "all": 3.0, "all-quantize": 4.0, "all-cache": 8.0},
    {"base": 99.0, "quantize": 50.0, "cache": 40.0, "all": 39.0, "all-quantize": 40.0, "all-cache": 50.0},
)


def test_two_passes_share_by_shapley() -> None:
    found = contributions(TWO)
    assert found is not None
    # quantize saves 2 s alone and 1 s on top of the cache; the cache saves 6 s and 5 s.
    assert [(share["pass"], share["seconds_saved"]) for share in found] == [
        ("quantize", 1.5), ("cache", 5.5), ("together", 0.0),
    ]  # fmt: skip
    mine = (1e-5 + 10**-3.9 - 1e-4) / 2
    assert found[0]["squared_error"] == pytest.approx(mine)
    assert sum(share["squared_error"] for share in found) == pytest.approx(10**-3.9)


def test_three_passes_add_up_with_what_they_do_together(comparison: Any) -> None:
    _, record = comparison()
    shares, by_name = record["contributions"], {row["name"]: row for row in record["rows"]}
    assert [share["pass"] for share in shares] == ["quantize", "sparse_attn", "cache", "together"]
    saved = by_name["base"]["seconds"] - by_name["all"]["seconds"]
    assert sum(share["seconds_saved"] for share in shares) == pytest.approx(saved)
    assert shares[0]["seconds_saved"] == pytest.approx((2 + 0.5) / 2)
    assert shares[3]["seconds_saved"] == pytest.approx(9 - 1.25 - (5 + 0.8) / 2 - (8 + 3) / 2)


@pytest.mark.parametrize("gone", ["cache", "all-quantize", "base", "all"])
def test_no_contributions_where_a_figure_is_missing(gone: str) -> None:
    assert contributions({name: row for name, row in TWO.items() if name != gone}) is None
    assert contributions({**TWO, "cache": {**TWO["cache"], "seconds": None}}) is None


def test_identical_pictures_have_no_error() -> None:
    assert squared_error(99.0) == 0.0 and squared_error(20.0) == pytest.approx(0.01)


def test_bars_fill_their_width_and_nothing_is_drawn_below_zero(comparison: Any) -> None:
    _, record = comparison()
    record["contributions"][1]["seconds_saved"] = -0.5
    parts = time_bar(record)
    assert [part.name for part in parts] == ["whole stack", "quantize", "sparse_attn", "cache", "together"]
    assert parts[2].width == 0 and parts[2].figure.text == "0.50 s lost"
    assert sum(part.width for part in parts) == pytest.approx(100)
    total = sum(max(0.0, part.figure.value) for part in parts)
    assert [part.width for part in parts] == pytest.approx([100 * max(0.0, p.figure.value) / total for p in parts])
    assert all(b.start == pytest.approx(a.start + a.width) for a, b in pairwise(parts))
    assert error_bar(record)[0].figure.source == "contributions.quantize.squared_error"
    assert saved_words(-0.001) == "0.00 s saved"


def test_memory_bars_are_shares_of_the_largest() -> None:
    rows = [
        {"name": "a", "peak_bytes": 10**9, "cache_bytes": 0},
        {"name": "b", "peak_bytes": 5 * 10**8, "cache_bytes": 1},
    ]
    rows.append({"name": "c", "peak_bytes": None, "cache_bytes": None})
    assert [(row["name"], width, peak.text) for row, width, peak, _ in memory_bars(rows)] == [
        ("a", 100.0, "1,000.0 MB"), ("b", 50.0, "500.0 MB"),
    ]  # fmt: skip


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_points_stand_where_the_record_says(comparison: Any, size: tuple[int, int]) -> None:
    _, record = comparison()
    plot = speed_plot(record, size)
    assert plot is not None
    assert [p.row["name"] for p in plot.points] == [r["name"] for r in visible(record) if r["role"] != "base"]
    for point in plot.points:
        assert value_at(plot.x, point.x) == pytest.approx(point.row["speedup"])
        shown = min(point.row["psnr_db"], top_of([p.row["psnr_db"] for p in plot.points]))
        assert value_at(plot.y, point.y) == pytest.approx(shown)
        assert point.box[0] >= 0 and point.box[2] <= size[0]


def test_bars_are_the_intervals_inside_the_axes(comparison: Any) -> None:
    _, record = comparison()
    for row in record["rows"]:
        row["speedup_95"] = row["psnr_db_95"] = None
    record["rows"][1] |= {"speedup_95": [1.1, 1.4], "psnr_db_95": [39.0, 1000.0]}
    plot = speed_plot(record)
    assert plot is not None and [len(point.bars) for point in plot.points] == [2] + 8 * [0]
    (left, y, right, same), (x, top, also, bottom) = plot.points[0].bars
    assert (value_at(plot.x, left), value_at(plot.x, right)) == (pytest.approx(1.1), pytest.approx(1.4))
    assert (y, same, x, also) == (plot.points[0].y, plot.points[0].y, plot.points[0].x, plot.points[0].x)
    assert value_at(plot.y, bottom) == pytest.approx(39.0) and top == plot.y.end  # cut at the upper end


RECORDS = Path(__file__).parents[3] / "docs" / "compare"


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", ["compare", "compare-128", "compare-sparse"])
def test_names_of_real_records_hide_no_other(name: str, size: tuple[int, int]) -> None:
    plot = speed_plot(json.loads((RECORDS / f"{name}.json").read_text()), size)
    assert plot is not None and all(point.bars for point in plot.points)
    assert [(a.label, b.label) for a, b in combinations(plot.points, 2) if overlap(a.box, b.box)] == []
    assert [p.label for p in plot.points if p.box[0] < 0 or p.box[2] > size[0]] == []


def test_a_name_far_from_its_point_has_a_line_to_it() -> None:
    assert lead((50, 50), (60, 45, 90, 55)) is None and lead((50, 50), (40, 40, 60, 60)) is None
    assert lead((50, 50), (70, 10, 90, 20)) == (50, 50, 70, 20)


def test_names_do_not_lie_across_the_front() -> None:
    rows = [
        {
            "name": name,
            "speedup": speedup,
            "psnr_db": psnr,
            "role": "stack",
            "group": "alone",
            "same_as": None,
            "control_of": "",
        }
        for name, speedup, psnr in (("quantize", 1.0, 56.0), ("cache", 2.2, 45.9), ("all", 3.1, 45.6))
    ]
    plot = speed_plot({"rows": rows})
    assert plot is not None and [p.row["name"] for p in plot.front] == ["quantize", "cache", "all"]
    for one, other in pairwise(plot.front):
        for point in plot.points:
            for share in (n / 50 for n in range(51)):
                x, y = one.x + share * (other.x - one.x), one.y + share * (other.y - one.y)
                left, top, right, bottom = point.box
                assert not (left < x < right and top < y < bottom), (point.label, share)


def value_at(scale: Axis, place: float) -> float:
    return scale.low + (place - scale.start) / (scale.end - scale.start) * (scale.high - scale.low)


def test_errors_stand_where_they_were_measured(comparison: Any) -> None:
    _, record = comparison()
    plot = error_plot(record)
    assert plot is not None
    assert {c.row["name"] for c in plot.curves} == {"cache", "all", "all-quantize", "all-sparse_attn"}
    curve = plot.curves[0]
    assert curve.values == [(pytest.approx(0.8), pytest.approx(0.02)), (pytest.approx(0.2), pytest.approx(0.05))]
    for (sigma, error), (x, y) in zip(curve.values, curve.places, strict=True):
        assert (value_at(plot.x, x), value_at(plot.y, y)) == (pytest.approx(sigma), pytest.approx(error))
    assert curve.places[0][0] < curve.places[1][0]  # noise is on the left
    assert error_plot({"rows": [row for row in record["rows"] if "cache" not in row["passes"]]}) is None


def test_the_front_of_some_points() -> None:
    assert front([(1.0, 50.0), (2.0, 40.0), (1.5, 39.0), (3.0, 30.0), (2.9, 30.0)]) == [0, 1, 3]
    assert front([(2.0, 40.0), (2.0, 41.0)]) == [1] and front([(2.0, 40.0), (2.0, 40.0)]) == [0]


POINTS = st.lists(st.tuples(st.integers(1, 6).map(float), st.integers(20, 30).map(float)), min_size=1, max_size=12)


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    found = front(points)
    for i, (speed, value) in enumerate(points):
        beaten = any(s >= speed and v >= value and (s, v) != (speed, value) for s, v in points)
        assert (points[i] in [points[j] for j in found]) == (not beaten)
    assert len({points[j] for j in found}) == len(found)
    assert [points[j][0] for j in found] == sorted(points[j][0] for j in found)


def test_ticks_are_round_and_inside() -> None:
    assert Axis(0.9, 4.2, 0, 1).ticks() == [1.0, 2.0, 3.0, 4.0]
    assert Axis(0.0, 0.12, 0, 1).ticks() == pytest.approx([0.0, 0.02, 0.04, 0.06, 0.08, 0.1])
    assert axis([2.0, 2.0], 0, 100, (0.5, 0.5), 1.0) == Axis(1.5, 3.5, 0, 100)


def test_names_avoid_each_other_and_the_edge() -> None:
    frame = (0.0, 0.0, 100.0, 100.0)
    right, left = place(90, 50, 30, 10, 1), place(90, 50, 30, 10, -1)
    assert right == (90, 45, 120, 55) and left == (60, 45, 90, 55)
    assert place(50, 50, 30, 10, 0) == (35, 45, 65, 55)
    assert cost(right, [], frame) == 2000 and cost(left, [], frame) == 0
    assert cost(left, [(80, 50, 95, 60)], frame) == 50
    assert overlap((0, 0, 2, 2), (2, 0, 4, 2)) == 0
    one, two = spread([(50, 50), (52, 50)], [20, 20], frame, 10)
    assert overlap(one, two) == 0


def test_identical_pictures_do_not_stretch_the_plot() -> None:
    assert top_of([30.0, 50.0, 99.0]) == pytest.approx(52.4)
    assert top_of([99.0]) == 99.0


def opened(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data.removeprefix("data:image/png;base64,"))))


def test_a_small_picture_is_kept_to_the_last_bit() -> None:
    picture = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(0))
    sheet = sheet_of(picture)
    assert (sheet.width, sheet.height, sheet.frames) == (12, 8, 1)
    expected = (picture * 255).round().byte().permute(1, 2, 0)
    assert torch.equal(
        torch.frombuffer(bytearray(opened(sheet.data).tobytes()), dtype=torch.uint8).view(8, 12, 3), expected
    )


def test_large_ones_are_scaled_and_long_ones_thinned() -> None:
    assert (sheet_of(torch.zeros(3, 300, 1024)).width, sheet_of(torch.zeros(3, 300, 1024)).height) == (512, 150)
    levels = torch.arange(100).view(100, 1, 1, 1).expand(100, 3, 4, 6) / 255
    sheet = sheet_of(levels)
    assert (sheet.frames, sheet.columns, sheet.lines) == (64, 8, 8)
    image = opened(sheet.data)
    assert image.size == (48, 32)
    assert [image.getpixel((x * 6, 28))[0] for x in range(8)][-1] == 99 and image.getpixel((0, 0)) == (0, 0, 0)
    assert image.getpixel((6, 0))[0] == round(99 / 63)


def test_text_and_marks_stand_out_on_both_papers() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#777777", "#ffffff") == pytest.approx(
        4.48, abs=0.01
    )
    assert LIGHT.keys() == DARK.keys()
    for colours in (LIGHT, DARK):
        for text in ("ink", "faint", "warning"):
            assert min(contrast(colours[text], colours[paper]) for paper in ("paper", "panel")) >= 4.5, text
        for mark in ("base", "alone", "left-out", "all", "control", "accent", "full"):
            assert contrast(colours[mark], colours["paper"]) >= 3, mark
        assert contrast(colours["full"], colours["cached"]) >= 3
        shares = [colours[f"share-{number}"] for number in range(4)]
        for one, other in zip(shares, [*shares[1:], shares[0]], strict=True):
            assert contrast(one, other) >= 2, (one, other)
    assert math.isclose(contrast(LIGHT["ink"], LIGHT["ink"]), 1)
