from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.caching.forecast import Forecast
from stack.caching.predictor import Predictor
from stack.caching.splits import ChannelBasis, TokenBand
from stack.core.errors import StackError
from stack.models.grid import Grid

N, D = 24, 16
WHOLE = (1.0, 1.0)


def feeding(predictor: Predictor, xs: list[float], features: list[torch.Tensor]) -> Predictor:
    for x, feature in zip(xs, features, strict=True):
        predictor.update(feature, x)
    return predictor


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 60), min_size=4, max_size=6, unique=True), st.integers(0, 3), st.integers(0, 99))
def test_newton_continues_a_polynomial_of_its_order_over_uneven_gaps(places: list[int], order: int, seed: int) -> None:
    xs = [place / 60 for place in sorted(places, reverse=True)]
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(order + 1, 1, N, D, generator=generator, dtype=torch.float64)

    def at(x: float) -> torch.Tensor:
        return sum((factor * x**i for i, factor in enumerate(factors)), torch.zeros(1, N, D, dtype=torch.float64))

    predictor = feeding(Predictor(Forecast(order, WHOLE)), xs, [at(x) for x in xs])
    torch.testing.assert_close(predictor.predict(-0.2), at(-0.2), rtol=1e-6, atol=1e-6)


def test_taylor_divides_every_order_by_the_last_gap() -> None:
    """TaylorSeer's second difference over gaps 1 and 5 is not Newton's: 5 instead of 3 in the second denominator."""
    values = {0.0: 1.0, 1.0: 3.0, 6.0: 4.0}
    features = [torch.full((1, N, D), v) for v in values.values()]
    predictor = feeding(Predictor(Forecast(2, WHOLE, "taylor", coordinate="step")), list(values), features)
    first = (4 - 3) / 5
    second = (first - (3 - 1) / 1) / 5
    torch.testing.assert_close(predictor.predict(8.0), torch.full((1, N, D), 4 + first * 2 + second * 2**2 / 2))


def test_hermite_contracts_every_order() -> None:
    features = [torch.full((1, N, D), v) for v in (0.0, 1.0, 4.0)]
    predictor = feeding(Predictor(Forecast(2, WHOLE, "hermite", coordinate="step")), [0.0, 1.0, 2.0], features)
    # s H_1(s u) = 0.5 u and s^2 H_2(s u) = 0.25 (u^2 - 2) for s = 0.5; differences 3 and 2.
    torch.testing.assert_close(predictor.predict(4.0), torch.full((1, N, D), 4 + 3 * 0.5 * 2 + 2 * 0.25 * (4 - 2) / 2))


def test_the_published_split_predicts_the_principal_part_and_reuses_the_residual() -> None:
    torch.manual_seed(0)
    first = torch.randn(1, N, D, dtype=torch.float64) * torch.linspace(4, 0.1, D)
    second = first + torch.randn(1, N, D, dtype=torch.float64) * 0.3
    split = ChannelBasis(0.8)
    predictor = feeding(Predictor(Forecast(1, (1, 0)), split), [1.0, 0.8], [first, second])
    assert split.basis is not None and 1 <= split.basis.shape[-1] < D
    got, onto = predictor.predict(0.7), split.basis[0] @ split.basis[0].T
    expected_principal = (second + (second - first) / 0.2 * 0.1) @ onto
    torch.testing.assert_close(got @ onto, expected_principal, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got - got @ onto, second - second @ onto, rtol=1e-4, atol=1e-5)


def test_the_printed_average_lags_behind() -> None:
    """With 0.9 on the older value the principal part moves by a tenth of the way; swapped, by nine tenths."""
    torch.manual_seed(0)
    first = torch.randn(1, N, 2) @ torch.randn(2, D)  # rank 2: all of it is principal
    for level in (0.9, 0.1):
        predictor = Predictor(Forecast(0, (0, 0), level=level), ChannelBasis(1.0))
        feeding(predictor, [0.0, 1.0], [first, 3 * first])
        torch.testing.assert_close(predictor.predict(5.0), (level + 3 * (1 - level)) * first, rtol=1e-3, atol=1e-3)


def test_a_warm_basis_follows_the_feature() -> None:
    torch.manual_seed(0)
    old, new = torch.linalg.qr(torch.randn(D, 4))[0].split(2, dim=1)
    first, second = (torch.randn(1, N, 2) @ side.T + 1e-3 * torch.randn(1, N, D) for side in (old, new))
    kept, warm = ChannelBasis(0.99, "request"), ChannelBasis(0.99, "warm")
    for split in (kept, warm):
        split.fit(first)
        for _ in range(3):
            split.fit(first + 20 * second)
    captured = [float(split.principal(second).norm() / second.norm()) for split in (kept, warm)]
    assert captured[0] < 0.1 and captured[1] > 0.99


GRIDS = st.lists(st.integers(1, 7), min_size=2, max_size=3).map(tuple)


@settings(deadline=None, max_examples=40)
@given(GRIDS, st.floats(0.05, 1), st.integers(0, 99))
def test_a_band_is_an_orthogonal_projection_that_keeps_constants(grid: Grid, cutoff: float, seed: int) -> None:
    split, drawn = TokenBand(cutoff, grid), torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 2, math.prod(grid), 3, generator=drawn, dtype=torch.float64)
    split.fit(x)
    low = split.principal(x)
    torch.testing.assert_close(split.principal(low), low)
    # Self-adjoint, so what is left is orthogonal to every principal part, not to its own only.
    assert abs(float((split.principal(y) * (x - low)).sum())) < 1e-9 * float((x.norm() * y.norm()).clamp_min(1))
    level = torch.randn(2, 1, 3, generator=drawn, dtype=torch.float64).expand_as(x)
    torch.testing.assert_close(split.principal(level), level)
    for i in range(2):
        torch.testing.assert_close(split.principal(x[i : i + 1]), low[i : i + 1])


@settings(deadline=None, max_examples=20)
@given(st.tuples(st.integers(1, 4), st.integers(2, 7), st.integers(2, 7)), st.floats(0.05, 1))
def test_a_band_keeps_the_low_waves_of_every_axis_and_removes_the_others(grid: Grid, cutoff: float) -> None:
    """Waves of the cosine transform along frames, rows and columns, one at a time."""
    split = TokenBand(cutoff, grid)
    split.fit(torch.zeros(1, math.prod(grid), 1, dtype=torch.float64))
    for axis, length in enumerate(grid):
        for wave in range(length):
            along = torch.cos(math.pi / length * (torch.arange(length, dtype=torch.float64) + 0.5) * wave)
            shape = [length if i == axis else 1 for i in range(3)]
            x = along.reshape(shape).expand(grid).reshape(1, -1, 1)
            kept = wave < math.ceil(cutoff * length)
            torch.testing.assert_close(split.principal(x), x if kept else torch.zeros_like(x))


def test_a_checkerboard_is_no_low_frequency() -> None:
    """In space, and from frame to frame: along an axis of four whose band is its mean nothing of it is left."""
    for grid, axes in (((4, 6), (0, 1)), ((2, 4, 6), (1, 2)), ((4, 3, 5), (0,))):
        places = torch.meshgrid(*(torch.arange(length) for length in grid), indexing="ij")
        board = 1.0 - 2 * (torch.stack([places[axis] for axis in axes]).sum(0) % 2).reshape(1, -1, 1)
        split = TokenBand(0.25, grid)
        split.fit(board)
        torch.testing.assert_close(split.principal(3 + board), torch.full_like(board, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("grid", "words"), [((4, 6), "got 4 x 6"), ((3, 3, 3), "got 3 x 3 x 3"), ((), "got no grid")])
def test_tokens_that_do_not_fit_the_grid_are_refused_before_anything_is_projected(grid: Grid, words: str) -> None:
    split = TokenBand(0.5, grid)
    with pytest.raises(StackError, match=f"expected a grid of 25 tokens, {words}: try"):
        split.fit(torch.zeros(1, 25, 2))
    with pytest.raises(StackError, match="no full step"):
        split.principal(torch.zeros(1, 25, 2))
    assert split.bytes == 0


def test_no_gain_is_plain_reuse_and_needs_no_basis() -> None:
    first, second = torch.randn(2, 1, N, D)
    split = ChannelBasis(0.85)
    predictor = feeding(Predictor(Forecast(2, (0, 0)), split), [1.0, 0.9], [first, second])
    assert torch.equal(predictor.predict(0.1), second)
    assert split.basis is None and predictor.bytes == second.nbytes


def test_before_a_second_full_step_it_reuses() -> None:
    feature = torch.randn(1, N, D)
    predictor = feeding(Predictor(Forecast(1, WHOLE)), [1.0], [feature])
    assert torch.equal(predictor.predict(0.5), feature)


def test_the_same_moment_twice_divides_by_nothing() -> None:
    first, second = torch.randn(2, 1, N, D)
    predictor = feeding(Predictor(Forecast(2, WHOLE)), [1.0, 0.5, 0.5], [first, first, second])
    assert torch.equal(predictor.predict(0.1), second)


def test_smoothing_averages_velocities() -> None:
    zero, one, four = (torch.full((1, N, D), v) for v in (0.0, 1.0, 4.0))
    predictor = feeding(Predictor(Forecast(1, WHOLE, smoothing=0.25)), [1.0, 0.9, 0.8], [zero, one, four])
    # Velocities -10 and -30 per unit time; 0.25 of the old, 0.75 of the new: -25.
    torch.testing.assert_close(predictor.predict(0.7), torch.full((1, N, D), 6.5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("order", "tensors"), [(0, 1), (1, 2), (2, 4)])
def test_bytes_are_those_of_the_tensors_held(order: int, tensors: int) -> None:
    predictor = Predictor(Forecast(order, (0.5, 0.5)))
    assert predictor.bytes == 0
    feeding(predictor, [1.0, 0.9, 0.7], list(torch.randn(3, 1, N, D)))
    # The feature, each shaped difference, and the raw ones below the highest.
    assert predictor.bytes == tensors * N * D * 4


def test_predicting_from_nothing_is_an_error() -> None:
    with pytest.raises(StackError, match="no full step"):
        Predictor(Forecast()).predict(0.5)


@pytest.mark.parametrize("gains", [(-0.1, 0.0), (1.0, 2.5), (1.0,)])
def test_gains_out_of_range(gains: Any) -> None:
    with pytest.raises(StackError, match=r"gains"):
        Forecast(gains=gains)


@pytest.mark.parametrize(("state", "unit"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_a_rounded_state_costs_what_rounding_may_cost(state: torch.dtype, unit: float) -> None:
    """F1 + c (F1 - F0), c = (x - x1) / (x1 - x0): F0, F1 and the difference are each off by `unit` of themselves."""
    torch.manual_seed(0)
    first, second = torch.randn(2, 1, N, D)
    exact = feeding(Predictor(Forecast(1, WHOLE)), [1.0, 0.8], [first, second])
    rounded = feeding(Predictor(Forecast(1, WHOLE), dtype=state), [1.0, 0.8], [first, second])
    assert rounded.bytes * 2 == exact.bytes
    got, wanted = rounded.predict(0.5), exact.predict(0.5)
    error, c = (got - wanted).abs(), 1.5
    assert got.dtype == torch.float32
    difference = (second - first).abs() + unit * first.abs()
    bound = unit * second.abs() + c * (unit * first.abs() + unit * difference) + 1e-6
    assert (error <= bound).all() and float(error.max()) > unit / 8


def test_a_wider_state_keeps_what_the_features_dtype_would_round() -> None:
    torch.manual_seed(0)
    features = list(torch.randn(3, 1, N, D).bfloat16())
    xs = [1.0, 0.93, 0.8]
    exact = feeding(Predictor(Forecast(2, WHOLE)), xs, [f.double() for f in features]).predict(0.4)
    errors = []
    for dtype in (None, torch.float32):
        predictor = feeding(Predictor(Forecast(2, WHOLE), dtype=dtype), xs, features)
        got = predictor.predict(0.4)
        assert got.dtype == torch.bfloat16
        errors.append(float((got.double() - exact).abs().max()))
    # Alone the rounding of the answer is left: half a unit in the last place of the largest.
    assert errors[1] <= 2**-8 * float(exact.abs().max()) < errors[0]


@pytest.mark.parametrize("options", [{"level": 0.5}, {"smoothing": 0.5}, {"gains": (1.0, 0.0)}, {"gains": (0.5, 0.5)}])
def test_every_forecast_works_on_a_state_of_another_dtype(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    features = list(torch.randn(4, 1, N, D))
    xs = [1.0, 0.9, 0.7, 0.6]
    for given_dtype, state in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        inputs = [f.to(given_dtype) for f in features]
        forecast = Forecast(**{"order": 1, "gains": WHOLE, **options})
        exact = feeding(Predictor(forecast, ChannelBasis(0.8)), xs, [f.float() for f in inputs]).predict(0.5)
        got = feeding(Predictor(forecast, ChannelBasis(0.8), state), xs, inputs).predict(0.5)
        assert got.dtype == given_dtype
        torch.testing.assert_close(got.float(), exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("order", [1, 2])
def test_differences_start_anew_where_they_are_told_to(order: int) -> None:
    """A jump between two kinds of step is no change in time: reuse at first, then the new kind's own slope."""

    def feature(x: float, jump: float) -> torch.Tensor:
        return torch.full((1, N, D), 2 * x + jump, dtype=torch.float64)

    predictor = Predictor(Forecast(order, WHOLE))
    for x in (1.0, 0.9, 0.8):
        predictor.update(feature(x, 0), x)
    assert torch.allclose(predictor.predict(0.75), feature(0.75, 0))
    predictor.update(feature(0.7, 50), 0.7, anew=True)
    assert torch.equal(predictor.predict(0.6), feature(0.7, 50))
    predictor.update(feature(0.5, 50), 0.5)
    assert torch.allclose(predictor.predict(0.3), feature(0.3, 50))
