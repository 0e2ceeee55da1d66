"""Labels of the plots do not cover each other."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.calibrate.quant.plots import spread_out


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.floats(0.1, 1))
def test_labels_keep_their_distance_and_their_order(heights: list[float], gap: float) -> None:
    placed = spread_out(heights, gap)
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    assert all(placed[i] >= heights[i] for i in order)
    assert all(placed[b] - placed[a] >= gap * 0.999 for a, b in itertools.pairwise(order))


def test_labels_with_room_stay_where_they_are() -> None:
    assert spread_out([3.0, 1.0, 2.0], 0.5) == [3.0, 1.0, 2.0]
    assert spread_out([1.0, 1.1, 3.0], 0.5) == pytest.approx([1.0, 1.5, 3.0])
