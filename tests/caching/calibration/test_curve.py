"""The curve of a calibration: what was measured by number of full steps, and where it falls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack import Stack
from stack.calibrated.results import curve_figure, record, save
from stack.calibration.calibration import Calibration
from stack.calibration.curve import CurvePoint, QualityCurve, cliff, curve_table, front
from stack.calibration.goals import Goal
from stack.calibration.search import one_fewer, one_more
from stack.calibration.time_budget import SearchBudget
from stack.calibration.trials import Trials
from stack.recipe import parse_recipe

from ...conftest import PROMPT, tiny_pipe

STEPS = 14
PROMPTS, HELD = [PROMPT, "a green circle"], ["a cyan star on a white background"]


def calibrated(trials: int = 20, method: str = "svd", **goal: float) -> Calibration:
    stack = Stack(tiny_pipe(), steps=STEPS).cache(method)
    asked = {"trials": trials, "budget": 1000.0, "progress": False, "learn": "off"}
    return stack.calibrate(PROMPTS, HELD, **asked, **goal)  # type: ignore[arg-type]  # numbers by name


def test_the_best_of_each_number_is_kept_and_the_choice_has_its_own_figure() -> None:
    curve = QualityCurve()
    for full, psnr in ((5, 36.0), (5, 38.0), (5, None), (4, 30.0), (6, 39.0)):
        curve.add(full, psnr)
    assert curve.points(5, 37.5) == (
        CurvePoint(4, 30.0, 1), CurvePoint(5, 37.5, 3, chosen=True), CurvePoint(6, 39.0, 1),
    )  # fmt: skip
    assert QualityCurve().points(4, 30.0) == (CurvePoint(4, 30.0, 1, chosen=True),)


def test_the_cliff_is_where_a_full_step_fewer_loses_most() -> None:
    points = [CurvePoint(3, 22.0, 1), CurvePoint(4, 30.0, 1), CurvePoint(5, 38.0, 9, True), CurvePoint(8, 47.0, 1)]
    assert cliff(points) == (points[0], points[1])
    assert cliff([points[1], CurvePoint(6, 37.0, 1), CurvePoint(6.5, 40.0, 1)]) == (
        CurvePoint(6, 37.0, 1), CurvePoint(6.5, 40.0, 1),
    )  # fmt: skip
    dip = CurvePoint(6, 30.0, 1)  # placed without a search: fewer full steps have more
    assert front([points[1], points[2], dip, points[3]]) == points[1:]
    assert cliff([points[2], dip, points[3]]) == (points[2], points[3])
    assert cliff(points[:1]) is None and cliff([CurvePoint(3, 30.0, 1), CurvePoint(4, 29.0, 1)]) is None
    assert curve_table(points).splitlines() == [
        "full steps     PSNR  tried",
        "         3  22.0 dB      1",
        "         4  30.0 dB      1",
        "         5  38.0 dB      9  chosen",
        "         8  47.0 dB      1",
        "steepest: 8.0 dB lost from 4 to 3 full steps",
    ]


@given(st.sets(st.integers(1, 49), min_size=2, max_size=20))
def test_the_schedules_beside_one_have_one_step_more_and_one_fewer(places: set[int]) -> None:
    full = (0, *sorted(places))
    fewer, more = one_fewer(full, 50), one_more(full, 50)
    assert len(fewer) == len(full) - 1 and {*fewer} < {*full} and fewer[0] == 0
    assert len(more) == len(full) + 1 and {*full} < {*more} and max(more) < 50


def test_the_steps_beside_are_where_they_matter_least_and_most() -> None:
    assert one_fewer((0, 3, 4, 5, 20), 50) == (0, 3, 5, 20) and one_fewer((0, 3, 4, 5, 20), 50, always=[4]) == (
        0,
        4,
        5,
        20,
    )
    assert one_more((0, 3, 4, 5, 20), 50) == (0, 3, 4, 5, 20, 35)
    assert one_fewer((0, 7), 50, always=[7]) == (0, 7)


def test_a_number_asked_for_is_measured_with_its_neighbours() -> None:
    found = calibrated(full_steps=5)  # the cache as it was has 4
    assert [point.full for point in found.curve] == [4, 5, 6] and found.trials <= 20
    low, chosen, high = found.curve
    assert chosen.chosen and chosen.psnr_db == found.psnr_db and chosen.tried >= 10
    assert (low.tried, high.tried) == (2, 1) and low.psnr_db < chosen.psnr_db
    assert found.table().splitlines()[2].endswith("chosen")


def test_too_few_trials_for_neighbours_go_to_the_search() -> None:
    found = calibrated(trials=9, full_steps=5)
    assert [point.full for point in found.curve] == [4, 5] and found.trials == 9


def test_without_time_for_neighbours_there_is_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SearchBudget, "room", lambda self, seconds: False)
    assert [point.full for point in calibrated(full_steps=5).curve] == [4, 5]


def test_a_quality_asked_for_shows_what_was_tried_on_both_sides() -> None:
    known = calibrated(full_steps=6)
    found = calibrated(trials=24, min_psnr=known.psnr_db - 0.5)
    (chosen,) = [point for point in found.curve if point.chosen]
    assert len(found.curve) >= 2 and chosen.psnr_db == found.psnr_db >= known.psnr_db - 0.5
    assert any(point.psnr_db < known.psnr_db - 0.5 for point in found.curve)


def test_a_gate_shows_every_threshold_tried() -> None:
    found = calibrated(trials=6, method="first-block", full_steps=9)
    assert len(found.curve) >= 2 and [point.full for point in found.curve] == sorted({p.full for p in found.curve})
    assert next(point for point in found.curve if point.chosen).full == pytest.approx(found.full, abs=1e-3)


def test_the_points_are_the_measured_ones() -> None:
    """Those of the search itself, asked for once more."""
    stack = Stack(tiny_pipe(), steps=STEPS).cache("svd")
    found = stack.calibrate(PROMPTS, HELD, full_steps=5, trials=12, budget=1000.0, progress=False, learn="off")
    trials = Trials(stack, found.cache, PROMPTS, STEPS, 0)
    assert trials.as_it_is().psnr == pytest.approx(next(p for p in found.curve if p.chosen).psnr_db, abs=0.01)


@pytest.mark.parametrize("goal", [Goal(min_psnr=33.0), Goal(full_steps=5), Goal()])
def test_the_picture_has_the_points_and_the_limit(goal: Goal, tmp_path: Path) -> None:
    points = (CurvePoint(4, 30.0, 1), CurvePoint(5, 38.0, 9, chosen=True))
    cache = next(iter(Stack(tiny_pipe(), steps=STEPS).cache("svd").passes))
    found = Calibration(cache, STEPS, 5, 38.0, 36.5, 30.0, 10, 1.0, curve=points)  # type: ignore[arg-type]  # a pass
    (axes,) = curve_figure(found, goal).axes
    named = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    assert [line.get_label() for line in named][:3] == ["best with so many or fewer", "chosen", "held out"]
    assert list(axes.lines[0].get_xydata().ravel()) == [4, 30, 5, 38]
    assert [text.get_text() for text in axes.texts] == ["30.0 dB\ntried once", "38.0 dB"]
    limits = [line for line in axes.lines if line.get_label() == goal.words]
    assert len(limits) == bool(goal.words)
    assert not goal.min_psnr or list(limits[0].get_ydata()) == [33.0, 33.0]
    recipe = parse_recipe({"steps": STEPS, "cache": {"method": "svd"}}, "mine")
    data = record(recipe, found, {"seed": 0}, "cpu")
    _, picture, kept = save(data, recipe, found, goal, tmp_path / "out")
    assert picture.read_bytes().startswith(b"\x89PNG") and json.loads(kept.read_text())["curve"] == [
        {"full": 4, "psnr_db": 30.0, "tried": 1, "chosen": False},
        {"full": 5, "psnr_db": 38.0, "tried": 9, "chosen": True},
    ]
