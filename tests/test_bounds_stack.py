"""Bounds of averages, shrunken forecasts, likely roundings and stacks, drawn near the edges of what they assume."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.bounds import (
    average_bound,
    average_lag,
    final_error_bound,
    forecast_bound,
    int8_matmul_bound,
    int8_matmul_likely_bound,
    shrunken_forecast_bound,
    stack_error_bound,
)
from stack.caching.forecast import Forecast
from stack.caching.predictor import Predictor
from stack.caching.splits import ChannelBasis
from stack.quant.kernels.rows import ZERO, quantize_rows, quantize_weight

seeds = st.integers(0, 10_000)
SMALL = 1e-9
CLOSE = 1 + 1e-6  # float32 inside the split


def wave(x: float, frequency: float, compute_mode: float) -> torch.Tensor:
    """A trajectory (1, 1, 2) on a circle: its n-th derivative has the norm frequency^n everywhere."""
    angle = frequency * x + compute_mode
    return torch.tensor([[[math.cos(angle), math.sin(angle)]]], dtype=torch.float64)


def pushed(size: float, seed: int) -> torch.Tensor:
    """An error of exactly this norm."""
    off = torch.randn(1, 1, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return size * off / off.norm()


@settings(deadline=None, max_examples=60)
@given(
    weight=st.floats(0, 0.95),
    frequency=st.floats(0.1, 20),
    gap=st.floats(0.001, 0.2),
    ahead=st.floats(0, 0.3),
    noise=st.sampled_from([0.0, 0.05]),
    count=st.integers(1, 40),
    seed=seeds,
)
def test_an_average_stands_in_within_its_bound(
    weight: float, frequency: float, gap: float, ahead: float, noise: float, count: int, seed: int
) -> None:
    """Gaps up to the largest, some of them next to nothing; few full steps, so that the first still weighs much."""
    predictor, x = Predictor(Forecast(0, (1.0, 0.0), level=weight), ChannelBasis(1.0, found=torch.eye(2))), 1.0
    shares = torch.rand(count, generator=torch.Generator().manual_seed(seed)).round(decimals=1).tolist()
    for number, share in enumerate(shares):
        predictor.update(wave(x, frequency, seed) + pushed(noise, seed + number), x)
        newest, x = x, x - gap * share - 1e-6
    error = float((predictor.predict(newest - ahead) - wave(newest - ahead, frequency, seed)).norm())
    bound = average_bound(weight, frequency, gap + 1e-6, ahead, noise)
    assert error <= bound * CLOSE + 1e-6


def test_the_average_of_a_line_reaches_its_bound() -> None:
    assert average_bound(0.8, 2.0, 0.1, 0.0) == pytest.approx(average_lag(0.8, 2.0, 0.1))


@settings(deadline=None, max_examples=80)
@given(
    order=st.integers(0, 3),
    gain=st.floats(0, 1),
    frequency=st.floats(0.1, 15),
    ahead=st.floats(0.001, 0.3),
    noise=st.sampled_from([0.0, 0.02]),
    seed=seeds,
)
def test_a_shrunken_forecast_of_bounded_slope_curvature_and_noise(
    order: int, gain: float, frequency: float, ahead: float, noise: float, seed: int
) -> None:
    places = torch.rand(order + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).square().tolist()
    nodes = sorted({round(place, 3) for place in places})
    predictor = Predictor(Forecast(len(nodes) - 1, (gain, gain)))
    for number, x in enumerate(reversed(nodes)):
        predictor.update(wave(x, frequency, seed) + pushed(noise, seed + number), x)
    at = nodes[0] - ahead
    error = float((predictor.predict(at) - wave(at, frequency, seed)).norm())
    bound = shrunken_forecast_bound(nodes, at, frequency, frequency ** len(nodes), gain, noise)
    assert error <= bound * CLOSE + SMALL


@settings(deadline=None, max_examples=40)
@given(ahead=st.floats(0.001, 0.3), gain=st.floats(0, 1), seed=seeds)
def test_its_ends_are_reuse_and_the_plain_forecast(ahead: float, gain: float, seed: int) -> None:
    nodes, at = [0.4, 0.55, 0.7], 0.4 - ahead
    reuse, whole = forecast_bound(nodes[:1], at, 3.0, 0.01), forecast_bound(nodes, at, 9.0, 0.01)
    assert shrunken_forecast_bound(nodes, at, 3.0, 9.0, 0.0, 0.01) == pytest.approx(reuse)
    assert shrunken_forecast_bound(nodes, at, 3.0, 9.0, 1.0, 0.01) == pytest.approx(whole)
    assert shrunken_forecast_bound(nodes, at, 3.0, 9.0, gain, 0.01) <= (1 - gain) * reuse + gain * whole + SMALL


@settings(deadline=None, max_examples=25)
@given(inner=st.integers(8, 600), kind=st.sampled_from(["normal", "uniform", "outlier"]), seed=seeds)
def test_roundings_that_know_nothing_of_each_other_stay_within_the_likely_bound(
    inner: int, kind: str, seed: int
) -> None:
    """1,024 outputs at a chance of one in a thousand each: by Hoeffding far fewer, and never more than eight."""
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(32, inner, generator=generator, dtype=torch.float64) for _ in range(2))
    if kind == "uniform":
        x, w = x.erf(), w.erf()
    if kind == "outlier":
        x[:, 0] *= 20
    values, x_step = quantize_rows(x.float())
    codes, w_step = quantize_weight(w.float(), 127)
    x_step, w_step = x_step.double(), w_step.double()
    got = ((values.double() - ZERO) * x_step) @ (codes.double() * w_step[:, None]).mT
    error = (got - x @ w.mT).abs()
    likely = int8_matmul_likely_bound(x_step, w_step, x.norm(dim=1, keepdim=True), w.norm(dim=1), inner, 1e-3)
    assert int((error > likely).sum()) <= 8
    if inner >= 64:  # where it is of use
        sure = int8_matmul_bound(x_step, w_step, x.abs().sum(1, keepdim=True), w.abs().sum(1), inner)
        assert bool((likely < sure).all())


def test_roundings_of_one_sign_break_the_likely_bound_and_not_the_sure_one() -> None:
    """Its assumption matters: halves are all rounded the same way."""
    inner = 4096
    x = torch.cat([torch.full((1, 1), 127.0), torch.full((1, inner - 1), 2.5)], 1).double()
    values, step = quantize_rows(x.float())
    error = abs(float(((values.double() - ZERO) * step.double() - x).sum()))
    ones, steps = torch.ones(1, inner).double(), torch.tensor([1e-9]).double()
    likely = int8_matmul_likely_bound(step.double(), steps, x.norm(dim=1, keepdim=True), ones.norm(dim=1), inner, 1e-3)
    sure = int8_matmul_bound(step.double(), steps, x.sum(1, keepdim=True), ones.sum(1), inner)
    assert float(likely) < error <= float(sure)


@settings(deadline=None, max_examples=60)
@given(lipschitz=st.floats(0, 4), count=st.integers(1, 30), passes=st.integers(1, 4), seed=seeds)
def test_errors_of_several_passes_in_the_final_sample(lipschitz: float, count: int, passes: int, seed: int) -> None:
    """All errors one way in a velocity that spreads neighbours as fast as it may: equal. Any other way: below."""
    generator = torch.Generator().manual_seed(seed)
    gaps = (-torch.rand(count, generator=generator, dtype=torch.float64) / count).tolist()
    errors = torch.rand(passes, count, generator=generator, dtype=torch.float64)
    signs = torch.where(torch.rand(passes, count, generator=generator) < 0.5, -1.0, 1.0).double()
    bound = stack_error_bound(errors.tolist(), gaps, lipschitz)
    assert bound == pytest.approx(sum(final_error_bound(own, gaps, lipschitz) for own in errors.tolist()))
    for turn, exact in ((torch.ones_like(signs), True), (signs, False)):
        x = y = 1.0
        for gap, error in zip(gaps, (errors * turn).sum(0).tolist(), strict=True):
            x, y = x - gap * lipschitz * x, y + gap * (-lipschitz * y - error)
        assert abs(x - y) <= bound + SMALL
        assert not exact or abs(x - y) == pytest.approx(bound)
