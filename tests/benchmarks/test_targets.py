from __future__ import annotations

from typing import Any

import pytest
from cachebench.page import cells, page, table
from cachebench.plot import draw, labelled, short
from cachebench.targets import (
    calibrated_targets,
    controls_lost_to,
    in_time_of,
    over_controls,
    published_targets,
    rivals_of,
    slow_rivals,
)


def line(row: str, group: str, speedup: float | None, psnr: float, full: int = 9, **more: Any) -> dict[str, Any]:
    family = more.pop("family", row.split(",")[0])
    return {
        "row": row, "group": group, "family": family, "settings": {}, "speedup": speedup, "psnr": psnr, "full": full,
        "seconds": 1.0, "work": 0.2, "ssim": 0.9, "accuracy": 1.0, "MB": 1.5, "overhead_ms": 0.25, "rounds": 4, **more,
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


def test_rivals_have_the_same_full_steps_or_no_more_time() -> None:
    ours = line("svd calibrated, 9", "ours", 5.0, 46.0)
    rivals = [
        line("cache-dit, 9", "cache-dit", 2.0, 40.0, full=9), line("cache-dit, 10", "cache-dit", 2.0, 41.0, full=10),
        line("cache-dit, 12", "cache-dit", 2.0, 50.0, full=12), line("quick", "diffusers", 4.9, 30.0, full=20),
        line("taylorseer-lite, 9", "preset", 4.0, 38.0, full=9), line("fora, 9", "preset", 5.5, 60.0, full=9),
        line("broken", "cache-dit", None, 70.0, full=9),
    ]  # fmt: skip
    found = {how: [r["row"] for r in rows] for how, rows in rivals_of(ours, rivals, 9).items()}
    assert found == {
        "with 9 full steps": ["cache-dit, 9", "cache-dit, 10", "taylorseer-lite, 9"], "in its own time": ["quick"],
    }  # fmt: skip


def test_targets_of_a_calibrated_row() -> None:
    rows = over_controls(
        [line("svd calibrated, 9", "ours", 5.0, 46.0), line("cache-dit, 9", "cache-dit", 2.0, 43.0), *CONTROLS]
    )
    targets = {t.name: t for t in calibrated_targets(rows, (12, 9), 50)}
    values = {name.split(": ")[1].split(" (")[0]: t.value for name, t in targets.items()}
    assert values["dB over the best rival with 9 full steps"] == pytest.approx(3.0)
    assert values["speedup over 50 / 9"] == pytest.approx(0.9)
    assert values["dB over fewer steps, second order, in its own time"] == pytest.approx(5.0)
    assert [t.met for t in targets.values()] == [False, True, True, False]
    assert all(name.startswith("svd calibrated, 9") for name in targets)


def test_a_slow_rival_with_as_many_full_steps_is_met_in_its_own_time() -> None:
    slow, quick = line("cache-dit, 12 (best of 9)", "cache-dit", 1.5, 52.0, full=12), line("b", "diffusers", 4.0, 40.0)
    assert slow_rivals([slow, quick], (12, 9), 50) == {12: slow}  # 1.5 of 4.2 times; 4.0 of 5.6
    name = in_time_of(slow)
    assert name == "svd calibrated, in the time of cache-dit, 12"

    def met(speedup: float) -> list[tuple[float, bool]]:
        rows = over_controls([line(name, "ours", speedup, 57.0), slow, quick])
        return [(t.value, t.met) for t in calibrated_targets(rows, (12, 9), 50)]

    assert met(1.52) == [(5.0, True)]
    assert met(1.4) == []  # it takes longer: nothing is shown


def test_published_claims() -> None:
    rows = [
        line("svd, 9", "preset", 5.4, 40.0, family="svd") | {"settings": {"interval": 7}},
        line("svd, 12", "preset", 3.0, 40.0, family="svd", full=12) | {"settings": {"interval": 5}},
        line("duca, 9", "preset", 4.0, 36.0, work=0.2),
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
        "protocol": {"model": "m", "steps": 50, "prompts": ["a", "b"]}, "machine": {"device": "cpu", "threads": 2},
        "rows": rows, "targets": [{"name": "t", "value": 0.5, "op": ">=", "target": 1.0, "met": False}],
    }  # fmt: skip
    text = page(record, "x.png", {"rows": [{"row": "svd", "samples": 9, "same": 1.5, "drawn": 2.0}]})
    assert cells(rows[0])[-1] == "-1.0 loses" and cells(rows[0])[1] == "5.00x"
    assert rows[1]["over controls"] is None and "PSNR above this tells rounding" in text and "| 54.9 |" in text
    assert "1 of 1 caches lose" in text and "- x: not supported" in text
    assert "| t | 0.5 | >= 1 | **missed** |" in text and "| svd | 9 | 1.500 | 2.000 |" in text
    assert table(("a", "b"), [["1", "2"]]) == "| a | b |\n| --- | --: |\n| 1 | 2 |"


def test_the_plot_names_the_front_the_calibrated_and_each_familys_best(tmp_path: Any) -> None:
    caches = [
        line("svd calibrated, 9", "ours", 5.0, 46.0), line("fora, 9", "preset", 3.0, 33.0, family="fora"),
        line("fora, 12", "preset", 2.5, 34.0, family="fora"), line("cache-dit, 9 (best of 7)", "cache-dit", 2.0, 55.0),
    ]  # fmt: skip
    caches = over_controls([*caches, *CONTROLS])[:4]
    assert labelled(caches, {3}) == [0, 1, 3]
    assert short("cache-dit, 9 (best of 7)") == "cache-dit, 9"
    draw(caches, "title", tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000
    draw([], "title", tmp_path / "y.png")
    assert not (tmp_path / "y.png").exists()
