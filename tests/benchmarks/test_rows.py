from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from cachebench.assemble import ours
from cachebench.papers import budcache_rows, spectrum_rows
from cachebench.record import Record
from cachebench.rows import at_count, at_interval, preset_rows, rounding, settings_of, twins
from common import numbers

from stack.caching.contract import SITES
from stack.caching.methods import PRESETS


def bench(dtype: torch.dtype = torch.bfloat16) -> Any:
    pipe = SimpleNamespace(transformer=SimpleNamespace(dtype=dtype), scheduler=None)
    return SimpleNamespace(counts=(12, 9), usual=9, steps=50, pipe=pipe, protocol=dict, weights=None)


def test_a_calibrated_row_has_what_was_prepared() -> None:
    record = Record(
        Path("unused"), {}, prepared={"svd calibrated, 9": {"options": {"full_steps": [0, 9]}, "learned": False}}
    )
    (row,) = ours(bench(), record, lambda name: True)
    assert (row.name, row.group, row.family) == ("svd calibrated, 9", "ours", "svd calibrated")
    assert row.settings == {"method": "svd", "full_steps": (0, 9)}


def test_plain_presets_run_at_every_count_and_gates_as_shipped() -> None:
    assert settings_of(bench(), "reuse", PRESETS["reuse"]).keys() == {"reuse, 12", "reuse, 9"}
    assert settings_of(bench(), "duca-values", PRESETS["duca-values"]).keys() == {"duca-values, 9"}
    assert settings_of(bench(), "first-block", PRESETS["first-block"]) == {"first-block": {}}


def test_published_presets_run_as_published_and_at_the_usual_count_or_threshold(monkeypatch: Any) -> None:
    for name in ("fora", "first-block"):
        monkeypatch.setitem(PRESETS, f"{name}-published", PRESETS[name])
    found = {name: settings_of(bench(), name, PRESETS[name]) for name in PRESETS if name.endswith("-published")}
    assert found["fora-published"] == {
        "fora-published": {}, "fora-published, 9": {"interval": 7, "warmup": 3},
    }  # fmt: skip
    gate = found["first-block-published"]
    assert gate["first-block-published"] == {} and gate["first-block-published, 2 of its threshold"] == {
        "threshold": pytest.approx(0.16)
    }
    assert found["speca-published"]["speca-published, 0.5 of its threshold"] == {
        "accept": (0.15, 0.3, pytest.approx(0.01))
    }
    assert found["fastcache-published"]["fastcache-published, 2 of its threshold"] == {"threshold": pytest.approx(0.1)}
    assert twins()["fora"] == "fora-published"
    names = [row.family for row in preset_rows(bench(), lambda name: True, lambda name: {})]
    assert "fora-published" in names and "fora" not in names, "the same cache is measured once"


def test_a_count_is_asked_for_by_its_option() -> None:
    assert at_interval(bench(), 12) == {"interval": 5, "warmup": 3}
    assert at_count(bench(), 12) == {"count": 12}


def test_papers_that_are_rebuilt() -> None:
    prepared = {f"{family}, 9": {"full_steps": [0, 7]} for family in ("BudCache", "BudCache over svd")}
    plain, under = budcache_rows(bench(), Record(Path("unused"), {}, prepared=prepared), lambda name: True)
    assert plain.settings["method"] == "reuse" and plain.settings["order"] == 0
    assert under.settings == {"method": "svd", "full_steps": (0, 7), "steps": 50}
    try:
        names = [row.name for row in spectrum_rows(bench(), lambda name: True)]
    finally:
        SITES.pop("spectrum")
    assert len(names) == 6 and names[0] == "Spectrum, 12 full, ridge 0.1, degree 4"


def test_the_base_in_fp32_is_a_row_where_the_base_is_not() -> None:
    assert [row.group for row in rounding(bench(), lambda name: True)] == ["rounding"]
    assert not list(rounding(bench(torch.float32), lambda name: True))
    assert not list(rounding(bench(), lambda name: name == "svd"))


def test_numbers_of_an_option() -> None:
    assert numbers("12,10, 9") == (12, 10, 9)
    for wrong in ("", "a", "3,", "0", "-1", "1.5"):
        with pytest.raises(typer.BadParameter, match="expected whole numbers"):
            numbers(wrong)
