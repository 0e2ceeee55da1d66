from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.measure.memory import PeakMemory
from stack.measure.timing import RoundRobin, median, ratio, steps_that_fit, timed


def test_median_ignores_one_slow_sample() -> None:
    assert median([1.0, 90.0, 1.2]) == 1.2
    assert median([2.0, 4.0]) == 3.0
    assert median([]) is None


def test_ratio_says_how_many_times_faster() -> None:
    assert ratio(6.0, 1.5) == 4.0
    assert ratio(6.0, None) is None
    assert ratio(6.0, 0.0) is None


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(7.0, 50), (1.4, 10), (1.39, 9), (1.53, 10), (0.01, 2), (20.0, 50)],
    ids=["all of it", "exactly ten", "rounded down", "not up", "at least two", "never more"],
)
def test_steps_that_fit(budget: float, expected: int) -> None:
    assert steps_that_fit(budget, 7.0, 50) == expected


@settings(deadline=None, max_examples=50)
@given(st.floats(0.01, 100), st.floats(0.01, 100), st.integers(2, 200))
def test_a_control_takes_no_longer_than_its_stack(budget: float, base: float, steps: int) -> None:
    fitting = steps_that_fit(budget, base, steps)
    assert 2 <= fitting <= steps
    assert fitting == 2 or fitting * base / steps <= budget * (1 + 1e-6)
    assert fitting == steps or (fitting + 1) * base / steps > budget * (1 - 1e-6)


def test_rows_take_turns() -> None:
    assert list(RoundRobin(["a", "b"], 2)) == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]


def test_rows_added_in_the_first_round_get_as_many_turns() -> None:
    turns, seen = RoundRobin(["a", "b", "c"], 3), []
    for number, row in turns:
        seen.append((number, row))
        if (number, row) == (0, "b"):
            turns.add("late")
        if (number, row) == (1, "a"):
            turns.drop("c")
    assert seen == [
        (0, "a"), (0, "b"), (0, "c"), (0, "late"),
        (1, "a"), (1, "b"), (1, "late"),
        (2, "a"), (2, "b"), (2, "late"),
    ]  # fmt: skip


def test_timed_returns_the_result_and_a_time_that_has_passed() -> None:
    result, seconds = timed(lambda: sum(range(100_000)), torch.device("cpu"))
    assert result == 4_999_950_000
    assert seconds > 0


def test_peak_memory_sees_a_large_tensor_come_and_go() -> None:
    with PeakMemory(torch.device("cpu")) as before:
        pass
    with PeakMemory(torch.device("cpu")) as peak:
        held = torch.ones(100_000_000)  # 400 MB
        torch.ones(1).sum()
    assert before.bytes is not None and peak.bytes is not None
    assert peak.bytes - before.bytes > 300e6, (before.bytes, peak.bytes)
    assert held.numel() == 100_000_000
