"""Few-step adapters: what a line is held against."""

from __future__ import annotations

import pytest
from few_steps import targets_of


def test_a_line_is_held_against_both_controls_and_its_work() -> None:
    line = {
        "adapter": "shapes-flux-8", "steps": 8, "full": [0, 5, 7], "work": 8 / 3, "speedup": 2.6, "median": 43.0,
        "plain": 37.5, "solver": 43.5,
    }  # fmt: skip
    asked, plain, solver, speed = targets_of([line])
    assert (asked.target, asked.met) == (42, True)
    assert plain.value == pytest.approx(5.5) and plain.met
    assert solver.value == pytest.approx(-0.5) and not solver.met
    assert speed.value == pytest.approx(0.975) and speed.met
