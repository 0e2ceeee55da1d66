from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from cachebench.assemble import ours
from cachebench.record import Record
from cachebench.rows import rounding, scheduled
from common import numbers

from .test_targets import line

RIVAL = line("cache-dit, 12 (best of 9)", "cache-dit", 1.5, 52.0, full=12)


def bench(dtype: torch.dtype = torch.bfloat16) -> Any:
    return SimpleNamespace(counts=(12,), steps=50, pipe=SimpleNamespace(transformer=SimpleNamespace(dtype=dtype)))


def test_a_slow_rivals_time_gets_a_row_of_as_many_full_steps_as_fit_it() -> None:
    known = {"svd calibrated, 31": {"options": {"full_steps": [0, 9]}}}  # 0.95 of 50 / 1.5
    record = Record(Path("unused"), {}, prepared=known, rows=[RIVAL])
    (row,) = ours(bench(), record, lambda name: "in the time of" in name)
    assert row.name == "svd calibrated, in the time of cache-dit, 12" and row.group == "ours"
    assert row.settings == {"method": "svd", "full_steps": (0, 9)}
    assert not list(ours(bench(), Record(Path("unused"), {}), lambda name: "in the time of" in name)), "no rival yet"


def test_the_base_in_fp32_is_a_row_where_the_base_is_not() -> None:
    assert [row.group for row in rounding(bench(), lambda name: True)] == ["rounding"]
    assert not list(rounding(bench(torch.float32), lambda name: True))
    assert not list(rounding(bench(), lambda name: name == "svd"))


def test_what_the_plan_advises_is_a_row_at_each_count() -> None:
    (row,) = scheduled(bench(), lambda name: name.startswith("svd corrected"))
    told = {"method": "svd", "interval": 5, "warmup": 3, "schedule_power": 2.0, "corrected": True}
    assert (row.name, row.family, row.settings) == ("svd corrected, 12", "svd corrected", told)


def test_numbers_of_an_option() -> None:
    assert numbers("12,10, 9") == (12, 10, 9)
    for wrong in ("", "a", "3,", "0", "-1", "1.5"):
        with pytest.raises(typer.BadParameter, match="expected whole numbers"):
            numbers(wrong)
