"""Forecasts under noise: plain where there is none, reuse where there is nothing else, better than both in between."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.caching.forecast import NOTHING, Differences, Forecast, before_newest, differences
from stack.caching.predictor import Predictor
from stack.caching.splits import ChannelBasis, Split, TokenBand
from stack.compat.noise import NoiseLedger, floor_at, wiener

TOKENS, WIDTH = 256, 24
WHOLE = (1.0, 1.0)


def smooth(generator: torch.Generator, rank: int, slope: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A feature (1, N, D) of unit mean square, and its change per unit of time inside a few directions."""
    basis = torch.linalg.qr(torch.randn(WIDTH, rank, generator=generator)).Q
    first, change = (torch.randn(1, TOKENS, rank, generator=generator) @ basis.mT for _ in range(2))
    return first / first.square().mean().sqrt(), slope * change / change.square().mean().sqrt()


def run(predictor: Predictor, features: list[torch.Tensor], xs: list[float], noise: float) -> torch.Tensor:
    for feature, x in zip(features, xs, strict=True):
        predictor.update(feature, x, noise=noise)
    return predictor.predict(xs[-1] - 0.1)


def split_of(kind: str) -> Split | None:
    return {"none": None, "basis": ChannelBasis(0.9), "band": TokenBand(0.25, (16, 16))}[kind]


seeds = st.integers(0, 999)
kinds = st.sampled_from(["none", "basis", "band"])
gains_of = {"none": WHOLE, "basis": (1.0, 0.0), "band": (1.0, 0.5)}


@settings(deadline=None, max_examples=30)
@given(kind=kinds, order=st.integers(1, 3), seed=seeds)
def test_nothing_but_noise_is_plain_reuse_exactly(kind: str, order: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    still, _ = smooth(generator, 6, 0.0)
    features = [still + 0.03 * torch.randn(still.shape, generator=generator) for _ in range(4)]
    predictor = Predictor(Forecast(order, gains_of[kind]), split_of(kind))
    assert torch.equal(run(predictor, features, [0.9, 0.7, 0.6, 0.4], 0.03), features[-1])


@settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(["none", "basis"]), order=st.integers(1, 3), seed=seeds, slope=st.sampled_from([0.5, 1.0, 2.0])
)
def test_under_noise_it_beats_the_plain_forecast_and_reuse(kind: str, order: int, seed: int, slope: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, change = smooth(generator, 6, slope)
    xs = [0.9, 0.8, 0.7, 0.6]
    truth = [first + (1 - x) * change for x in [*xs, 0.5]]
    noisy = [feature + 0.05 * torch.randn(feature.shape, generator=generator) for feature in truth[:-1]]
    relative = 0.05 / float(truth[2].square().mean().sqrt())
    forecast = Forecast(order, gains_of[kind])
    error = {
        noise: float((run(Predictor(forecast, split_of(kind)), noisy, xs, noise) - truth[-1]).square().mean())
        for noise in (0.0, relative)
    }
    reuse = float((noisy[-1] - truth[-1]).square().mean())
    assert error[relative] <= 1.02 * min(error[0.0], reuse)
    if order > 1:
        assert error[relative] < 0.7 * error[0.0]  # higher differences are mostly noise: the plain forecast adds it


def test_a_gap_too_narrow_for_the_noise_is_widened() -> None:
    """Full steps at 0.5 and 0.49: the plain slope is noise over 0.01; ours is taken from 0.8."""
    generator = torch.Generator().manual_seed(0)
    first, change = smooth(generator, 6, 2.0)
    xs = [0.8, 0.5, 0.49]
    noisy = [first + (1 - x) * change + 0.05 * torch.randn(first.shape, generator=generator) for x in xs]
    truth, forecast = first + (1 - 0.39) * change, Forecast(1, WHOLE)
    ours, plain = (run(Predictor(forecast), noisy, xs, noise) - truth for noise in (0.05, 0.0))
    assert float(ours.square().mean()) < 0.01 * float(plain.square().mean())
    predictor = Predictor(forecast)
    run(predictor, noisy, xs, 0.05)
    assert predictor._raw.nodes == [0.49, 0.8]


@settings(deadline=None, max_examples=30)
@given(places=st.lists(st.integers(0, 50), min_size=4, max_size=4, unique=True), seed=st.integers(0, 99))
def test_differences_without_their_newest_node_are_those_of_the_others(places: list[int], seed: int) -> None:
    xs = [place / 50 for place in sorted(places, reverse=True)]
    values = [torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(seed + i)).double() for i in range(4)]
    forecast = Forecast(3, WHOLE)

    def after(count: int) -> Differences:
        found = NOTHING
        for i in range(count):
            found = differences(forecast, values[i], xs[i], found, {i: 1.0})
        return found

    fewer, expected = before_newest(after(4)), after(3)
    assert fewer.nodes == expected.nodes
    for mine, theirs, mix, known in zip(fewer.values, expected.values, fewer.mixes, expected.mixes, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
        assert mix.keys() == known.keys()
        assert all(mix[j] == pytest.approx(known[j], rel=1e-6) for j in known)


def test_the_noise_of_a_difference_is_what_its_mix_says() -> None:
    """Second differences over gaps 0.1 and 0.3, against 2,000 draws."""
    xs, forecast, ledger = [0.9, 0.8, 0.5], Forecast(2, WHOLE), NoiseLedger()
    generator, found = torch.Generator().manual_seed(0), NOTHING
    for x in xs:
        draws = torch.randn(1, 2000, 4, generator=generator)
        found = differences(forecast, draws, x, found, ledger.enter(draws, 1.0))
    for value, mix in zip(found.values, found.mixes, strict=True):
        assert float(ledger.variance(mix)) == pytest.approx(float(value.square().mean()), rel=0.06)


@pytest.mark.parametrize(
    ("power", "noise", "gain"), [(1.0, 0.0, 1.0), (0.0, 0.0, 1.0), (0.5, 1.0, 0.0), (0.0, 1.0, 0.0)]
)
def test_the_gain_at_its_ends(power: float, noise: float, gain: float) -> None:
    assert float(wiener(torch.tensor(power), torch.tensor(noise), 100)) == gain


def test_the_gain_is_the_share_of_the_signal_where_many_numbers_tell_it() -> None:
    gain = wiener(torch.tensor(1.0), torch.tensor(0.25), 10**9)
    assert float(gain) == pytest.approx(0.75, abs=1e-3)


def test_the_floor_lies_on_lines_between_what_was_measured() -> None:
    floor = ((0.2, 0.01), (1.0, 0.05))
    assert floor_at(floor, 0.6) == pytest.approx(0.03)
    assert floor_at(floor, 0.1) == 0.01
    assert floor_at((), 0.5) == 0.0
