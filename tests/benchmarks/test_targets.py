from __future__ import annotations

from typing import Any

import pytest
from cachebench.page import cells, page, table
from cachebench.targets import (
    calibrated_targets,
    controls_lost_to,
    default_targets,
    over_controls,
    published_targets,
)


def line(row: str, group: str, speedup: float | None, median: float, full: int = 9, **more: Any) -> dict[str, Any]:
    family = more.pop("family", row.split(",")[0])
    return {
        "row": row, "group": group, "family": family, "settings": {}, "speedup": speedup, "median": median,
        "psnr": median - 1, "flipped": 0.25, "perceptual": None, "full": full, "seconds": 1.0, "work": 0.2,
        "ssim": 0.9, "accuracy": 1.0, "MB": 1.5, "overhead_ms": 0.25, "rounds": 4, **more,
    }  # fmt: skip


CONTROLS = [
    line("10 steps, euler", "euler", 5.0, 35.0), line("25 steps, euler", "euler", 2.0, 45.0),
    line("10 steps, second order", "second order", 5.0, 38.0), line("10 steps, searched", "searched", 5.0, 41.0),
    line("25 steps, second order", "second order", 2.0, 50.0),
]  # fmt: skip


def test_a_row_is_held_against_both_controls_in_its_own_time() -> None:
    rows = over_controls([line("svd calibrated, 9", "ours", 5.0, 46.0), line("slow", "preset", 0.9, 60.0), *CONTROLS])
    assert rows[0]["over euler"] == pytest.approx(11.0)
    assert rows[0]["over second order"] == rows[0]["over controls"] == pytest.approx(5.0)  # the searched one
    assert rows[1]["over controls"] == pytest.approx(60.0 - 99.0)  # slower than the base, which is identical
    assert rows[2]["over controls"] is None
    assert controls_lost_to(rows) == (1, 2)
    assert over_controls([line("svd", "preset", 5.0, 40.0)])[0]["over controls"] is None


def test_the_default_is_held_against_its_goals_and_plain_steps_flips() -> None:
    rows = [
        line("svd, 12", "preset", 4.0, 43.5, full=12, flipped=0.125), line("svd, 6", "preset", 8.0, 30.0, full=6),
        line("20 steps, euler", "euler", 2.5, 38.0, flipped=0.125),
    ]  # fmt: skip
    found = {t.name: t for t in default_targets(over_controls(rows), "shapes-dit", (12, 9, 6, 5), 50)}
    assert found["svd, 12: median dB"].met and found["svd, 6: median dB"].missed_by == pytest.approx(2.0)
    flips = "share of flipped pictures, against 20 steps, euler"
    assert found[f"svd, 12: {flips}"].met and not found[f"svd, 6: {flips}"].met
    assert not any("median dB" in t.name for t in default_targets(over_controls(rows), "shapes-dit", (12,), 14))


def test_no_default_may_be_below_plain_steps_in_its_own_time() -> None:
    rows = [
        line("fora, 9", "preset", 5.0, 40.0, family="fora"), line("fora, 6", "preset", 5.0, 33.0, family="fora"),
        line("fora-published", "preset", 5.0, 20.0, family="fora-published"), *CONTROLS,
    ]  # fmt: skip
    (target,) = [t for t in default_targets(over_controls(rows), "m", (9,), 50) if "plain steps" in t.name]
    assert target.name == "fora, 6: dB over plain steps in its own time" and target.value == pytest.approx(-2.0)


def test_the_default_is_held_against_searched_steps_in_equal_time_and_at_40_db() -> None:
    rows = over_controls([line("svd, 9", "preset", 5.0, 46.0, family="svd"),
                          line("svd, 5", "preset", 10.0, 34.0, family="svd"), *CONTROLS,
                          line("5 steps, searched", "searched", 10.0, 31.0)])  # fmt: skip
    found = {t.name.split(" (")[0]: t for t in default_targets(rows, "m", (9, 5), 50)}
    assert found["svd, 9: dB over searched steps in its own time"].value == pytest.approx(5.0)
    assert found["svd, 5: dB over searched steps in its own time"].missed_by == pytest.approx(1.0)
    # Half way of ours, a tenth of theirs, in the logarithm of time: 5 * 2^0.5 against 5 * 2^0.1.
    assert found["svd: times faster at 40 dB than searched steps"].value == pytest.approx(2**0.4)


def test_the_best_rival_at_40_db_is_one_that_gets_there() -> None:
    rows = over_controls([
        line("svd, 9", "preset", 6.0, 46.0, family="svd"),
        line("cache-dit, 9", "cache-dit", 1.5, 43.0), line("cache-dit, 12", "cache-dit", 2.0, 40.0, family="cache-dit"),
        line("diffusers x", "diffusers", 4.0, 35.0), line("fora-published", "preset", 1.8, 45.0),
    ])  # fmt: skip
    (target,) = [t for t in default_targets(rows, "m", (9,), 50) if "times faster" in t.name]
    assert target.name == "svd: times faster at 40 dB than cache-dit (6.00x, 2.00x)" and target.value == 3.0
    low = over_controls([rows[0], rows[3]])
    (target,) = [t for t in default_targets(low, "m", (9,), 50) if "times faster" in t.name]
    assert "diffusers x never there: slowest point" in target.name and target.value == 1.5


def test_a_calibration_is_held_against_the_default() -> None:
    rows = [line("svd, 9", "preset", 5.0, 46.0), line("svd calibrated, 9", "ours", 5.0, 48.0)]
    (target,) = calibrated_targets(rows, 9)
    assert target.value == 2.0 and target.missed_by == 1.0
    assert calibrated_targets(rows[:1], 9) == []


def test_published_claims() -> None:
    rows = [
        line("svd, 9", "preset", 5.4, 40.0, family="svd") | {"settings": {"interval": 7}},
        line("svd, 12", "preset", 3.0, 40.0, family="svd", full=12) | {"settings": {"interval": 5}},
        line("duca-published", "preset", 4.0, 36.0, work=0.2),
        line("first-block, 12", "preset", 2.0, 45.0), line("first-block, 9", "preset", 4.0, 35.0),
        line("fastcache", "preset", 2.0, 44.0),
    ]  # fmt: skip
    values = [(t.value, t.met) for t in published_targets(rows, 50)]
    assert [met for _, met in values] == [True, False, False]
    assert [value for value, _ in values] == pytest.approx([0.972, 0.25, -1.0])


def test_the_page_tells_what_lost_and_what_does_not_run() -> None:
    known = [line("svd", "preset", 5.0, 40.0), line("base in fp32", "rounding", 0.5, 54.9), *CONTROLS]
    rows = [*over_controls(known), {"row": "x", "note": "not supported"}]
    record = {
        "protocol": {"model": "m", "steps": 50, "prompts": ["a", "b"], "batch": 8},
        "machine": {"device": "cpu", "threads": 2}, "rows": rows,
        "targets": [{"name": "t", "value": 0.5, "op": ">=", "target": 1.0, "met": False, "missed_by": 0.5}],
    }  # fmt: skip
    text = page(record, "x.png", {"rows": [{"row": "svd", "samples": 9, "same": 1.5, "drawn": 2.0}]})
    assert cells(rows[0])[-1] == "-1.0 loses" and cells(rows[0])[1] == "5.00x"
    assert rows[1]["over controls"] is None and "PSNR above this tells rounding" in text and "| 54.9 |" in text
    assert "1 of 1 caches lose" in text and "- x: not supported" in text
    assert "| t | 0.5 | >= 1 | **missed** by 0.5 |" in text and "| svd | 9 | 1.500 | 2.000 |" in text
    assert table(("a", "b"), [["1", "2"]]) == "| a | b |\n| --- | --: |\n| 1 | 2 |"
