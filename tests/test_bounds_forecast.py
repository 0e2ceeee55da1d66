"""Bounds of forecasts, subspaces and final samples, drawn near the edges of what they assume; how tight they are."""

from __future__ import annotations

import itertools
import math
from statistics import median

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.bounds import (
    average_lag,
    final_error_bound,
    forecast_bound,
    lagrange_weights,
    replaced_block_bound,
    shrunken_error,
    sin_theta_bound,
    weyl_bound,
)
from stack.caching.forecast import Forecast
from stack.caching.predictor import Predictor
from stack.caching.splits import ChannelBasis

seeds = st.integers(0, 10_000)
SMALL = 1e-9


def steps(seed: int, count: int) -> list[float]:
    """Full steps at uneven times, first to last, some of them close together."""
    places = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).square()
    return sorted(({round(float(p), 3) for p in places} | {1.0}), reverse=True)


def followed(order: int, xs: list[float], values: list[torch.Tensor]) -> Predictor:
    predictor = Predictor(Forecast(order, (1.0, 1.0)))
    for x, value in zip(xs, values, strict=True):
        predictor.update(value, x)
    return predictor


def wave(x: float, frequency: float, compute_mode: float) -> torch.Tensor:
    """A trajectory (1, 1, 2) on a circle: its n-th derivative has the norm frequency^n everywhere."""
    angle = frequency * x + compute_mode
    return torch.tensor([[[math.cos(angle), math.sin(angle)]]], dtype=torch.float64)


@settings(deadline=None, max_examples=80)
@given(
    order=st.integers(0, 3),
    frequency=st.floats(0.1, 20),
    ahead=st.floats(0.001, 0.3),
    noise=st.sampled_from([0.0, 0.02]),
    seed=seeds,
)
def test_a_forecast_of_bounded_curvature_and_noise(
    order: int, frequency: float, ahead: float, noise: float, seed: int
) -> None:
    xs = steps(seed, order + 3)
    generator = torch.Generator().manual_seed(seed)
    off = torch.randn(len(xs), 2, generator=generator, dtype=torch.float64)
    off = noise * off / off.norm(dim=1, keepdim=True)
    values = [wave(x, frequency, seed) + e for x, e in zip(xs, off, strict=True)]
    at = xs[-1] - ahead
    nodes = xs[::-1][: order + 1]
    error = float((followed(order, xs, values).predict(at) - wave(at, frequency, seed)).norm())
    assert error <= forecast_bound(nodes, at, frequency ** len(nodes), noise) * (1 + 1e-6) + SMALL


def test_how_tight_the_forecast_bound_is() -> None:
    ratios = []
    for order, frequency, seed in itertools.product((0, 1, 2), (0.5, 3.0), range(10)):
        xs = steps(seed, order + 3)
        at, nodes = xs[-1] - 0.1, xs[::-1][: order + 1]
        error = float(
            (followed(order, xs, [wave(x, frequency, seed) for x in xs]).predict(at) - wave(at, frequency, seed)).norm()
        )
        ratios.append(forecast_bound(nodes, at, frequency ** len(nodes)) / error)
    assert 1 <= median(ratios) < 1.5


@settings(deadline=None, max_examples=40)
@given(order=st.integers(0, 3), ahead=st.floats(0.01, 0.3), seed=seeds)
def test_the_predictor_is_the_lagrange_polynomial(order: int, ahead: float, seed: int) -> None:
    xs = steps(seed, order + 2)
    values = [
        torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(seed + i), dtype=torch.float64)
        for i in range(len(xs))
    ]
    at = xs[-1] - ahead
    used = list(zip(xs, values, strict=True))[::-1][: order + 1]
    expected = sum(
        (w * v for w, (_, v) in zip(lagrange_weights([x for x, _ in used], at), used, strict=True)),
        torch.zeros(1, 2, 3),
    )
    torch.testing.assert_close(followed(order, xs, values).predict(at), expected, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(signal=st.floats(0, 10), noise=st.floats(1e-6, 10), gain=st.floats(0, 1))
def test_no_gain_beats_wieners(signal: float, noise: float, gain: float) -> None:
    best = shrunken_error(signal, noise, signal / (signal + noise))
    assert best <= shrunken_error(signal, noise, gain) + SMALL
    assert best <= min(signal, noise) + SMALL
    assert best == pytest.approx(signal * noise / (signal + noise))


def test_the_error_of_a_shrunken_difference_is_what_is_said() -> None:
    generator = torch.Generator().manual_seed(0)
    signal, noise = 2 * torch.randn(200_000, generator=generator), torch.randn(200_000, generator=generator)
    measured = float((0.7 * (signal + noise) - signal).square().mean())
    assert measured == pytest.approx(shrunken_error(4, 1, 0.7), rel=0.02)


@settings(deadline=None, max_examples=40)
@given(weight=st.floats(0, 0.95), slope=st.floats(-5, 5), gap=st.floats(0.01, 1))
def test_an_average_lags_behind_a_line(weight: float, slope: float, gap: float) -> None:
    predictor = Predictor(Forecast(0, (1.0, 0.0), level=weight), ChannelBasis(1.0))
    line = torch.full((1, 1, 1), slope, dtype=torch.float64)
    count = 400
    for i in range(count):
        predictor.update(i * gap * line + 1e4, float(-i))
    value = float(predictor.predict(float(-count)))
    lag = abs(value - (float(line) * (count - 1) * gap + 1e4)) if weight else 0.0
    assert lag == pytest.approx(average_lag(weight, slope, gap), rel=1e-3, abs=1e-3)


@settings(deadline=None, max_examples=60)
@given(lipschitz=st.floats(0, 4), count=st.integers(1, 40), seed=seeds)
def test_errors_of_steps_in_the_final_sample(lipschitz: float, count: int, seed: int) -> None:
    """Worst where the velocity spreads neighbours as fast as it may, and all errors point the same way: then equal."""
    generator = torch.Generator().manual_seed(seed)
    gaps = (-torch.rand(count, generator=generator, dtype=torch.float64) / count).tolist()
    errors = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    bound = final_error_bound(errors, gaps, lipschitz)
    for sign, exact in ((-1, True), (1, False)):
        x = y = 1.0
        for gap, error in zip(gaps, errors, strict=True):
            x, y = x + gap * sign * lipschitz * x, y + gap * (sign * lipschitz * y - error)
        assert abs(x - y) <= bound + SMALL
        assert not exact or abs(x - y) == pytest.approx(bound)


@settings(deadline=None, max_examples=60)
@given(rank=st.integers(1, 5), size=st.floats(1e-4, 3), seed=seeds)
def test_subspaces_under_a_disturbance(rank: int, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(8, generator=generator, dtype=torch.float64).sort(descending=True).values * 3
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    gram = turn @ torch.diag(values) @ turn.mT
    noise = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    noise = size * (noise + noise.mT) / 2
    moved, vectors = torch.linalg.eigh(gram + noise)
    moved, vectors = moved.flip(0), vectors.flip(1)
    largest = float(torch.linalg.matrix_norm(noise, 2))
    assert float((moved - values).abs().max()) <= weyl_bound(largest) + SMALL
    cosines = torch.linalg.svdvals(turn[:, :rank].mT @ vectors[:, :rank]).clamp(max=1)
    angle = float((1 - cosines.square()).sum().sqrt())
    assert angle <= sin_theta_bound(largest, float(values[rank - 1] - values[rank]), rank) + 1e-6


def test_how_tight_the_angle_is() -> None:
    """A plane turned by a disturbance across its gap: within a factor of 3, and capped where the gap closes."""
    gap, size = 1.0, 0.05
    gram = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    across = torch.tensor([[0.0, size], [size, 0.0]], dtype=torch.float64)
    vector = torch.linalg.eigh(gram + across).eigenvectors[:, 1]
    sine = abs(float(vector[1]))
    assert 1 <= sin_theta_bound(size, gap) / sine < 3
    assert sin_theta_bound(1.0, 0.0, 4) == 2.0


@settings(deadline=None, max_examples=40)
@given(seed=seeds, off=st.floats(0, 2))
def test_a_block_replaced_by_a_map(seed: int, off: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, d = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    truth, d = torch.tanh(weight @ x), off * d
    bound = replaced_block_bound(
        float((weight @ x - truth).norm()), float(d.norm()), float(torch.linalg.matrix_norm(weight, 2))
    )
    assert float((weight @ (x + d) - truth).norm()) <= bound + SMALL
