from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.caching.fastcache.chi_square import (
    ADAPTIVE,
    adaptive_limit,
    largest_change,
    tolerated_scale,
)


@pytest.mark.parametrize(
    ("probability", "freedom", "value"),
    [(0.95, 10, 18.307), (0.95, 100, 124.342), (0.99, 30, 50.892), (0.05, 50, 34.764), (0.5, 1000, 999.333)],
)
def test_quantiles_from_the_tables(probability: float, freedom: int, value: float) -> None:
    assert freedom * largest_change(1.0, 1 - probability, freedom) ** 2 == pytest.approx(value, abs=5e-4)


@pytest.mark.parametrize(("tokens", "width"), [(64, 128), (256, 1152), (1024, 192), (4096, 3072)])
def test_the_published_null_calls_a_change_of_everything_insignificant(tokens: int, width: int) -> None:
    """Threshold on delta^2 with scale 1, the paper's null, at any significance level in use."""
    for alpha in (0.01, 0.05, 0.5):
        assert largest_change(1.0, alpha, tokens * width) ** 2 == pytest.approx(1, abs=0.04)


@given(st.floats(0.001, 2), st.floats(0.001, 0.999), st.floats(0.001, 0.999), st.integers(1, 10**7))
def test_a_smaller_alpha_lets_more_pass(scale: float, one: float, other: float, elements: int) -> None:
    small, large = sorted((one, other))
    assert largest_change(scale, small, elements) >= largest_change(scale, large, elements)
    assert largest_change(2 * scale, small, elements) == pytest.approx(2 * largest_change(scale, small, elements))


def test_the_scale_is_the_limit_of_large_blocks() -> None:
    assert largest_change(0.07, 0.05, 1024 * 192) == pytest.approx(0.07, rel=0.005)
    assert largest_change(0.07, 0.05, 64) > 1.1 * 0.07


def test_the_published_adaptive_threshold_is_a_fixed_one() -> None:
    """0.01 + 0.5 delta >= delta up to delta = 0.02; the terms in t move that by less than 0.004."""
    for moment in (0.0, 0.5, 1.0):
        assert adaptive_limit(0.016, moment) >= 0.016 and adaptive_limit(0.0201, moment) < 0.0201
    assert adaptive_limit(0.1, 1.0) == pytest.approx(0.01 + 0.05 - 0.002 + 5e-5)
    assert adaptive_limit(0.1, 0.5, (1, 2, 3, 4)) == pytest.approx(1 + 0.2 + 1.5 + 1)
    assert ADAPTIVE == (0.01, 0.5, -0.002, 5e-5)


@pytest.mark.parametrize(
    ("errors", "allowed", "scale"),
    [
        ([0.02, 0.03, 0.04, 0.05], 0.025, 0.15),  # 0.01 + 0.1 delta
        ([0.02, 0.03, 0.04, 0.05], 0.01, 0.0),
        ([0.02, 0.03, 0.04, 0.05], 0.2, 0.4),  # nothing was measured beyond 0.4
        ([0.0, 0.1, 0.2, 0.3], 0.1, 0.15),  # the line would start below 0: through the origin it is 2/3 delta
        ([0.5, 0.4, 0.2, 0.1], 0.31, 0.4),  # no dearer further away: all or nothing, at the mean of 0.3
        ([0.5, 0.4, 0.2, 0.1], 0.29, 0.0),
    ],
)
def test_the_scale_of_a_known_table(errors: list[float], allowed: float, scale: float) -> None:
    changes = [0.1, 0.2, 0.3, 0.4]
    assert tolerated_scale(changes, errors, allowed) == pytest.approx(scale)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30), st.floats(0, 1))
def test_more_is_let_through_where_more_is_allowed(rows: list[tuple[float, float]], allowed: float) -> None:
    changes, errors = zip(*rows, strict=True)
    scale = tolerated_scale(changes, errors, allowed)
    assert 0 <= scale <= max(changes) and tolerated_scale(changes, errors, 2 * allowed) >= scale
    assert tolerated_scale((), (), allowed) == tolerated_scale(changes, errors, 0.0) == 0
    # Errors twice as large tolerate what half the allowance did.
    doubled = [2 * error for error in errors]
    assert tolerated_scale(changes, doubled, 2 * allowed) == pytest.approx(scale, rel=1e-6, abs=1e-9)
