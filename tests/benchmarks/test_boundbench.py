"""Bounds hold on typical inputs, and are as tight there as they are said to be."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from statistics import mean, median

import pytest
from boundbench import documented
from boundbench.table import CASES, LOOSEST, Case

from stack import bounds

FLOAT32 = 1 - 1e-4
NO_BOUNDS = {"best_speedup", "lagrange_weights", "rounding_share"}  # a law, weights, and what is measured


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.bound)
def test_the_median_of_bound_over_truth_is_as_stated(case: Case) -> None:
    found = case.measured(seeds=12)
    assert FLOAT32 <= median(found) <= case.at_most <= LOOSEST
    if case.kind == "bound":
        assert min(found) >= FLOAT32
    if case.kind == "likely":
        assert sum(ratio < 1 for ratio in found) <= 0.005 * len(found)
    if case.kind == "mean":
        assert mean(found) == pytest.approx(1, abs=0.02)


def test_every_bound_has_its_tightness_and_says_what_it_assumes() -> None:
    known = {
        name: function
        for module in (bounds, documented)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
    }
    assert {case.bound.split(",")[0] for case in CASES} == known.keys() - NO_BOUNDS
    assert all(inspect.getdoc(function) for function in known.values())


def test_what_the_package_has_of_bounds_reaches_running_code() -> None:
    names = [name for name, f in inspect.getmembers(bounds, inspect.isfunction) if f.__module__ == bounds.__name__]
    package = Path(bounds.__file__).parent
    code = "".join(file.read_text() for file in package.rglob("*.py") if file.name != "bounds.py")
    assert [name for name in names if not re.search(rf"import .*\b{name}\b", code)] == []
