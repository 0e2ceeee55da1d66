from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from stack.comparison.loop import measure
from stack.comparison.record import KEYS, ROW_KEYS, Header, build_record, decibels, save_json, visible
from stack.comparison.rows import Row, plan_rows
from stack.comparison.table import footnotes
from stack.measure.flops import Work


def rows_of(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in record["rows"]}


def test_the_keys_others_rely_on_are_there(comparison: Any) -> None:
    _, record = comparison()
    assert set(KEYS) == {
        "model", "device", "dtype", "torch", "prompts", "steps", "seed", "rows", "efficiency", "interaction_db",
    }  # fmt: skip
    assert set(ROW_KEYS) == {
        "name", "passes", "seconds", "speedup", "flops_speedup", "psnr_db", "ssim", "accuracy", "full_steps", "steps",
        "cache_bytes", "peak_bytes", "warnings",
    }  # fmt: skip
    assert not set(KEYS) - set(record)
    for row in record["rows"]:
        assert not set(ROW_KEYS) - set(row), row["name"]


def test_figures_follow_from_what_was_measured(comparison: Any) -> None:
    _, record = comparison()
    rows = rows_of(record)
    assert rows["base"]["seconds"] == pytest.approx(10.0)
    assert rows["cache"]["speedup"] == pytest.approx(5.0)
    assert rows["all"]["speedup"] == pytest.approx(10.0)
    # Alone 1.25, 2 and 5 times: 12.5 together if nothing overlapped.
    assert record["efficiency"] == pytest.approx(10 / 12.5)
    assert rows["quantize"]["psnr_db"] == pytest.approx(40.0, abs=1e-2)
    # Worst alone is an offset of 0.02; together 0.05.
    assert record["interaction_db"] == pytest.approx(20 * math.log10(0.05 / 0.02), abs=1e-2)
    assert (rows["all"]["full_steps"], rows["all"]["steps"]) == (5, 50)
    assert (rows["fewer-steps"]["full_steps"], rows["fewer-steps"]["steps"]) == (5, 5)
    assert rows["all"]["cache_bytes"] == 4096
    assert rows["all"]["accuracy"] == 0.75


def test_work_is_counted_apart_from_time(comparison: Any) -> None:
    rows = rows_of(comparison()[1])
    assert rows["quantize"]["flops_speedup"] == pytest.approx(1.0)
    assert rows["sparse_attn"]["flops_speedup"] == pytest.approx(1000 / 900)
    assert rows["cache"]["flops_speedup"] == pytest.approx(10.0)
    assert rows["all"]["flops_speedup"] == pytest.approx(10 * 1000 / 900)
    assert rows["fewer-steps"]["flops_speedup"] == pytest.approx(10.0)


def test_the_cache_s_own_error_is_told_apart(comparison: Any) -> None:
    rows = rows_of(comparison()[1])
    # all is off by 0.05, the same stack without its cache by 0.03: the cache's share is 0.02.
    assert rows["all"]["psnr_vs_uncached_db"] == pytest.approx(-20 * math.log10(0.02), abs=1e-2)
    assert rows["cache"]["psnr_vs_uncached_db"] == pytest.approx(rows["cache"]["psnr_db"])
    assert rows["quantize"]["psnr_vs_uncached_db"] is None


def test_a_row_that_changed_nothing_says_so(comparison: Any) -> None:
    rows = rows_of(comparison()[1])
    assert any("identical to base" in text for text in rows["all-quantize"]["warnings"])  # the fake's offset is 0
    assert rows["base"]["warnings"] == [] and rows["fewer-steps"]["warnings"] == []


def test_rows_with_the_same_passes_share_a_measurement(comparison: Any) -> None:
    _, record = comparison(recipes={"r": ("quantize", "cache")})
    rows = rows_of(record)
    assert rows["all-quantize"]["same_as"] == "cache"
    assert rows["all-quantize"]["seconds"] == rows["cache"]["seconds"]
    assert rows["all-quantize"]["passes"] == ["cache"]
    assert [row["name"] for row in visible(record)] == [
        "base", "quantize", "cache", "all", "fewer-steps", "fewer-steps-multistep",
    ]  # fmt: skip


def test_a_dropped_pass_has_the_figures_of_what_ran_instead(comparison: Any) -> None:
    _, record = comparison(effective=lambda row: tuple(p for p in row.passes if p != "sparse_attn"))
    rows = rows_of(record)
    assert (rows["sparse_attn"]["same_as"], rows["sparse_attn"]["speedup"]) == ("base", 1.0)
    assert rows["sparse_attn"]["role"] == "stack" and rows["sparse_attn"]["passes"] == ["sparse_attn"]
    assert record["efficiency"] == pytest.approx(10 / (1.25 * 1.0 * 5))
    assert any("sparse_attn = base, all-quantize = cache" in note for note in footnotes(record))
    assert rows["all"]["psnr_vs_uncached_db"] == pytest.approx(-20 * math.log10(0.04), abs=1e-2)  # against quantize


def test_several_recipes_have_no_efficiency(comparison: Any) -> None:
    _, record = comparison(recipes={"a": ("quantize", "cache"), "b": ("cache",)})
    assert record["efficiency"] is None and record["interaction_db"] is None
    assert record["recipe"] == ["a", "b"]


def test_pictures_are_compared_with_the_eager_base(make_engine: Any) -> None:
    eager = Row("base-eager", "base", "base", steps=50)
    plan = plan_rows({"r": ("quantize", "cache")}, 50)
    measurement = measure(make_engine(), [*plan, eager], ("a", "b"), seed=0)
    for generation in measurement.rows["base"].generations:
        generation.seconds /= 2  # compilation halves the base's time,
        generation.picture = generation.picture + 0.1  # and rounds very differently
    header = Header("m", "cpu", "float32", ("a", "b"), 50, 0, ("r",))
    record = build_record(header, measurement, Work(1, 1, 1), lambda pictures: None)
    assert record["efficiency"] == pytest.approx(5 / (0.625 * 2.5))
    rows = rows_of(record)
    assert "base-eager" not in rows
    assert rows["quantize"]["psnr_db"] == pytest.approx(40.0, abs=1e-2)  # against the eager pictures
    assert rows["base"]["psnr_db"] == pytest.approx(20.0, abs=1e-2)


def test_every_row_says_how_near_its_control_is(comparison: Any) -> None:
    rows = rows_of(comparison()[1])
    assert (rows["cache"]["control"], rows["cache"]["control_steps"]) == ("fewer-steps@cache", 10)
    assert rows["cache"]["control_psnr_db"] == rows["fewer-steps@cache"]["psnr_db"]
    assert (rows["all"]["control"], rows["all"]["control_steps"]) == ("fewer-steps", 5)
    assert rows["base"]["control"] is None and rows["fewer-steps"]["control"] is None
    shared = rows_of(comparison(recipes={"r": ("quantize", "cache")})[1])
    assert shared["all-quantize"]["control"] == "fewer-steps@cache"  # measured as cache


def test_each_two_passes_are_set_against_the_product_of_their_speedups(comparison: Any) -> None:
    pairs = {tuple(pair["passes"]): pair for pair in comparison()[1]["pairs"]}
    assert {passes: pair["row"] for passes, pair in pairs.items()} == {
        ("sparse_attn", "cache"): "all-quantize", ("quantize", "cache"): "all-sparse_attn",
        ("quantize", "sparse_attn"): "all-cache",
    }  # fmt: skip
    # 10 / 4 s together; 10 / 8 and 10 / 5 alone. Off by 0.03 together, by 0.02 the worse of them.
    pair = pairs[("quantize", "sparse_attn")]
    assert pair["efficiency"] == pytest.approx(2.5 / (1.25 * 2.0))
    assert pair["interaction_db"] == pytest.approx(20 * math.log10(0.03 / 0.02), abs=1e-2)


def test_what_a_peer_s_steps_ran_is_not_made_up(comparison: Any, make_engine: Any) -> None:
    plan = plan_rows({"r": ("cache",)}, 50, peers=["theirs"])
    engine = make_engine()
    make = engine.generate

    def unknown(row: Row, prompt: str, seed: int) -> Any:
        made = make(row, prompt, seed)
        made.kinds = () if row.role == "peer" else made.kinds
        return made

    engine.generate = unknown
    header = Header("m", "cpu", "float32", ("a",), 50, 0, ("r",))
    record = build_record(header, measure(engine, plan, ("a",), 0), Work(1, 1, 1), lambda pictures: None)
    theirs = rows_of(record)["theirs"]
    assert theirs["full_steps"] is theirs["steps"] is theirs["flops_speedup"] is None
    assert theirs["kinds"] == theirs["computed"] == [] and theirs["seconds"] == pytest.approx(9.9)


def test_an_interrupted_comparison_is_marked(comparison: Any, make_engine: Any) -> None:
    _, record = comparison(make_engine(stop_after=19))
    rows = rows_of(record)
    assert record["partial"] is True
    assert rows["all"]["prompts_done"] == 2 and rows["quantize"]["prompts_done"] == 2
    assert rows["cache"]["prompts_done"] == 1
    _, empty = comparison(make_engine(stop_after=0))
    assert empty["rows"] == [] and empty["efficiency"] is None


def test_a_failed_row_keeps_its_line(comparison: Any, make_engine: Any) -> None:
    _, record = comparison(make_engine(failing="quantize"))
    row = rows_of(record)["quantize"]
    assert row["seconds"] is None and row["psnr_db"] is None and row["full_steps"] is None
    assert row["warnings"] == ["failed: RuntimeError: out of memory"]
    assert record["efficiency"] is None


def test_the_file_is_strict_json(tmp_path: Path) -> None:
    save_json({"a": [1.5, math.nan, (math.inf, "x")], "b": {"c": -math.inf}}, tmp_path / "deep" / "x.json")
    assert json.loads((tmp_path / "deep" / "x.json").read_text()) == {"a": [1.5, None, [None, "x"]], "b": {"c": None}}


def test_decibels_for_reading() -> None:
    assert (decibels(None), decibels(99.0), decibels(34.56)) == ("-", "identical", "34.6")
