"""Bounds of forecasts and of subspaces hold for the predictor and the bases, near the edges of what they assume."""

from __future__ import annotations

import itertools
import math
from statistics import median

import pytest
import torch
from boundbench.documented import (
    average_bound,
    forecast_bound,
    shrunken_error,
    shrunken_forecast_bound,
    truncation_error,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from predictability_maps import split

from stack.bounds import lagrange_weights, sin_theta_bound
from stack.caching.amplification import amplification
from stack.caching.bases import Bases
from stack.caching.cache import Cache
from stack.caching.forecast import BASES, Forecast
from stack.caching.methods import PRESETS
from stack.caching.predictor import Predictor
from stack.caching.splits import ChannelBasis
from stack.compat.noise import shrunk
from stack.compat.subspace import principal_basis

from .test_plan import FACTS

seeds = st.integers(0, 10_000)
SMALL = 1e-9
CLOSE = 1 + 1e-6  # float32 inside the split


def steps(seed: int, count: int) -> list[float]:
    """Full steps at uneven times, first to last, some of them close together."""
    places = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).square()
    return sorted(({round(float(p), 3) for p in places} | {1.0}), reverse=True)


def followed(order: int, xs: list[float], values: list[torch.Tensor]) -> Predictor:
    predictor = Predictor(Forecast(order, (1.0, 1.0)))
    for x, value in zip(xs, values, strict=True):
        predictor.update(value, x)
    return predictor


def pushed(size: float, seed: int) -> torch.Tensor:
    """An error of exactly this norm."""
    off = torch.randn(1, 1, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return size * off / off.norm()


def wave(x: float, frequency: float, phase: float) -> torch.Tensor:
    """A trajectory (1, 1, 2) on a circle: its n-th derivative has the norm frequency^n everywhere."""
    angle = frequency * x + phase
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


@settings(deadline=None, max_examples=40)
@given(weight=st.floats(0, 0.95), slope=st.floats(0.01, 5), gap=st.floats(0.01, 1))
def test_the_average_of_a_line_reaches_its_bound(weight: float, slope: float, gap: float) -> None:
    predictor = Predictor(Forecast(0, (1.0, 0.0), level=weight), ChannelBasis(1.0))
    for i in range(400):
        predictor.update(torch.full((1, 1, 1), i * gap * slope + 1e4, dtype=torch.float64), float(-i))
    lag = abs(float(predictor.predict(-400.0)) - (399 * gap * slope + 1e4))
    assert lag == pytest.approx(average_bound(weight, slope, gap, 0.0), rel=1e-3, abs=1e-3)


@settings(deadline=None, max_examples=60)
@given(
    order=st.integers(0, 3),
    basis=st.sampled_from(BASES),
    gains=st.sampled_from([(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (1.3, 0.4)]),
    gain=st.floats(0, 1.5),
    seed=seeds,
)
def test_errors_of_full_steps_come_through_at_most_as_often_as_explain_says(
    order: int, basis: str, gains: tuple[float, float], gain: float, seed: int
) -> None:
    """Errors in the principal part and beside it, of every pattern of signs: below the bound, and at it for one."""
    generator = torch.Generator().manual_seed(seed)
    full = {0, *torch.randperm(12, generator=generator)[:5].tolist()}
    forecast, xs = Forecast(order, gains, basis), [1 - step / 12 for step in range(12)]
    most, found = amplification(forecast, xs, full, lambda step: gain), [1.0]
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=len(full))), dtype=torch.float64)
    # The split's basis is the first of two channels: an error lies in it or in the other.
    for channel in torch.eye(2, dtype=torch.float64):
        predictor = Predictor(forecast, ChannelBasis(1.0, found=torch.tensor([[1.0], [0.0]])))
        turns = iter(signs.T)
        for step, x in enumerate(xs):
            if step in full:
                predictor.update(next(turns)[:, None, None] * channel, x, gain)  # a sample for each pattern
            else:
                found.append(float(predictor.predict(x).norm(dim=-1).max()))
    assert max(found) <= most * CLOSE
    if basis != "hermite" or gains[0] == gains[1]:  # else the largest weights are not all of one part
        assert max(found) == pytest.approx(most)


def test_explain_says_how_often_errors_of_full_steps_come_through() -> None:
    """Evenly spaced full steps: a line through two of them is 2 s / n + 1 times off at s steps of n."""
    line = Cache("svd-published", interval=5, warmup=1, noise=()).describe(FACTS)[2]
    assert line == "error: forecasts amplify errors of full steps at most 2.6 times (bound)"
    told = {name: any(each.startswith("error:") for each in Cache(name).describe(FACTS)) for name in PRESETS}
    assert told["taylorseer"] and told["hicache"] and told["predictor-corrector"]
    assert not told["fora"] and not told["first-block"] and not told["fastcache"]  # reuse; gates


def test_gains_of_shrunken_differences_lose_no_more_than_reuse_or_the_plain_forecast() -> None:
    """`shrunk` estimates its gain from the noisy difference itself: near the least expected error, wherever that is."""
    generator = torch.Generator().manual_seed(0)
    for power in (0.0, 0.3, 1.0, 4.0, 30.0):
        signal = power**0.5 * torch.randn(1, 200, 500, generator=generator)
        noisy = signal + torch.randn(signal.shape, generator=generator)
        found = float((shrunk(noisy, torch.ones(1)) - signal).square().mean())
        assert found <= min(power, 1.0) * 1.02 + SMALL
        assert found == pytest.approx(shrunken_error(power, 1.0, power / (power + 1)), rel=0.05, abs=1e-4)


@settings(deadline=None, max_examples=40)
@given(kind=st.sampled_from(["even", "steep", "low rank"]), energy=st.floats(0.2, 1), seed=seeds)
def test_the_principal_basis_of_a_feature_leaves_the_truncation_error(kind: str, energy: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randn(1, 40, 16, generator=generator)
    spread = {"even": torch.ones(16), "steep": torch.logspace(0, -2, 16), "low rank": (torch.arange(16) < 3) * 1.0}
    feature = feature * spread[kind] + 1e-3 * torch.randn(feature.shape, generator=generator)
    basis = principal_basis(feature, energy)[0]
    singular = torch.linalg.svdvals(feature[0].double())
    left = float(split(feature[0], basis)[1].norm())
    assert left == pytest.approx(float(truncation_error(singular, basis.shape[1])), rel=1e-3, abs=1e-3)
    assert left**2 <= (1 - energy + 2e-6) * float(singular.square().sum()) * (1 + 1e-3)


@settings(deadline=None, max_examples=60)
@given(
    size=st.floats(1e-3, 1),
    gap=st.floats(0.05, 3),
    kind=st.sampled_from(["random", "across the gap", "inside"]),
    seed=seeds,
)
def test_a_basis_turns_no_further_than_its_file_says(size: float, gap: float, kind: str, seed: int) -> None:
    """The first principal direction of a feature before and after noise, worst across the gap to the second one."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(30, 8, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    values = torch.tensor([1 + gap, 1.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0], dtype=torch.float64)
    feature = left * values @ right.mT
    noise = {
        "random": torch.randn(30, 8, generator=generator, dtype=torch.float64),
        "across the gap": left[:, :1] @ right[:, 1:2].mT,
        "inside": left[:, :1] @ right[:, :1].mT,
    }[kind]
    noise = size * feature.norm() * noise / noise.norm()
    before, after = (principal_basis(each[None].float(), 0.01)[0].double() for each in (feature, feature + noise))
    sine = math.sqrt(max(0.0, 1 - float((before.mT @ after).square().sum())))
    shares = values.square() / values.square().sum()
    spectra = {"output": (float(shares[0]), float(shares[0] - shares[1]))}
    bases = Bases("flux", 2, 8, {"output": before}, spectra)
    assert sine <= bases.turned(size) + 1e-3
    assert bases.turned(size) <= 1


def test_how_tight_the_angle_is() -> None:
    """A plane turned by a disturbance across its gap: within a factor of 3, and capped where the gap closes."""
    gap, size = 1.0, 0.05
    gram = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    across = torch.tensor([[0.0, size], [size, 0.0]], dtype=torch.float64)
    vector = torch.linalg.eigh(gram + across).eigenvectors[:, 1]
    assert 1 <= sin_theta_bound(size, gap) / abs(float(vector[1])) < 3
    assert sin_theta_bound(1.0, 0.0, 4) == 2.0
