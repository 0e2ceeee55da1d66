"""Divided differences by hand: values, nodes and what they are mixed of."""

from __future__ import annotations

import pytest
import torch

from stack.caching.forecast import NOTHING, Differences, Forecast, before_newest, differences, over_wide_gaps
from stack.compat.noise import NoiseLedger

WHOLE = (1.0, 1.0)


def feature(value: float) -> torch.Tensor:
    return torch.full((1, 2, 3), value, dtype=torch.float64)


def after(forecast: Forecast, steps: list[tuple[float, float]]) -> Differences:
    """Full steps (x, value), in order."""
    found = NOTHING
    for number, (x, value) in enumerate(steps):
        found = differences(forecast, feature(value), x, found, {number: 1.0})
    return found


def numbers(found: Differences) -> list[float]:
    return [float(value[0, 0, 0]) for value in found.values]


STEPS = [(1.0, 1.0), (0.8, 2.0), (0.5, 8.0)]


def test_newton_divides_by_the_gap_to_each_nodes_own() -> None:
    """First differences -5 and -20; the second one over 0.5 - 1.0: (-20 + 5) / -0.5 = 30."""
    found = after(Forecast(2, WHOLE), STEPS)
    assert numbers(found) == pytest.approx([8.0, -20.0, 30.0])
    assert found.nodes == [0.5, 0.8, 1.0]
    assert found.mixes[1] == pytest.approx({2: -1 / 0.3, 1: 1 / 0.3})
    assert found.mixes[2] == pytest.approx({2: 1 / 0.15, 1: -1 / 0.15 - 1 / 0.1, 0: 1 / 0.1})


@pytest.mark.parametrize("basis", ["taylor", "hermite"])
def test_published_recursions_divide_by_the_last_gap_every_time(basis: str) -> None:
    found = after(Forecast(2, WHOLE, basis), STEPS)
    assert numbers(found) == pytest.approx([8.0, -20.0, 15 / 0.3])


def test_smoothing_mixes_the_older_slope_in() -> None:
    found = after(Forecast(1, WHOLE, smoothing=0.25), STEPS)
    assert numbers(found) == pytest.approx([8.0, 0.75 * -20 + 0.25 * -5])
    assert found.mixes[1] == pytest.approx({2: -2.5, 1: 2.5 - 1.25, 0: 1.25})


def test_orders_grow_with_the_full_steps_and_stop_at_the_forecasts() -> None:
    for order in range(3):
        for count in range(1, 4):
            assert len(after(Forecast(order, WHOLE), STEPS[:count]).values) == min(order + 1, count)


def test_without_the_newest_node_it_is_as_before_it() -> None:
    found = before_newest(after(Forecast(2, WHOLE), STEPS))
    assert numbers(found) == pytest.approx([2.0, -5.0])
    assert found.nodes == [0.8, 1.0]
    assert found.mixes[0] == {1: 1.0} and found.mixes[1] == pytest.approx({1: -5.0, 0: 5.0})


@pytest.mark.parametrize(("noise", "nodes"), [(0.0, [0.5, 0.51, 1.0]), (0.5, [0.5, 1.0])])
def test_a_step_too_near_for_the_noise_is_passed_over(noise: float, nodes: list[float]) -> None:
    """From 0.51 to 0.5 the feature moves by 0.1, less than half of its noise; from 1.0 by 6."""
    forecast, ledger = Forecast(1, WHOLE), NoiseLedger()
    found = NOTHING
    for x, value in ((1.0, 2.0), (0.51, 7.9)):
        # One order more is kept than is used: what a gap is widened with.
        found = differences(Forecast(2, WHOLE), feature(value), x, found, ledger.enter(feature(value), noise))
    new = ledger.enter(feature(8.0), noise)
    found = over_wide_gaps(forecast, feature(8.0), 0.5, found, new, ledger)
    assert found.nodes == nodes
    assert numbers(found)[1] == pytest.approx((8.0 - (7.9 if len(nodes) == 3 else 2.0)) / (0.5 - nodes[1]))


def test_no_step_is_passed_over_where_none_is_older() -> None:
    ledger = NoiseLedger()
    first = differences(Forecast(1, WHOLE), feature(7.9), 0.51, NOTHING, ledger.enter(feature(7.9), 0.5))
    found = over_wide_gaps(Forecast(1, WHOLE), feature(8.0), 0.5, first, ledger.enter(feature(8.0), 0.5), ledger)
    assert found.nodes == [0.5, 0.51] and numbers(found)[1] == pytest.approx(-10.0)
