from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack import StackError
from stack.measure.frechet import fid, frechet_distance, t_fid

SEEDS = st.integers(0, 10_000)
DIMS = st.integers(1, 12)


def gaussian(seed: int, count: int, dim: int) -> torch.Tensor:
    """Correlated samples off the origin; singular where count <= dim."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) @ mix + mix[0]


def whitened(count: int, dim: int) -> torch.Tensor:
    """Samples whose mean is exactly 0 and whose covariance is exactly the identity."""
    raw = gaussian(5, count, dim)
    left, _, right = torch.linalg.svd(raw - raw.mean(0), full_matrices=False)
    return left @ right * math.sqrt(count - 1)


@settings(deadline=None, max_examples=30)
@given(SEEDS, DIMS, st.integers(2, 40))
def test_a_set_is_at_no_distance_from_itself(seed: int, dim: int, count: int) -> None:
    samples = gaussian(seed, count, dim)
    scale = samples.square().sum(1).mean().item()
    assert frechet_distance(samples, samples.flip(0)) <= 1e-6 * scale


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(*[st.floats(0, 5)] * 2, st.floats(-3, 3)), min_size=1, max_size=8))
def test_diagonal_gaussians_have_a_closed_form(axes: list[tuple[float, float, float]]) -> None:
    base = whitened(64, len(axes))
    one, two, shift = (torch.tensor(column, dtype=torch.float64) for column in zip(*axes, strict=True))
    expected = sum(s**2 + (a - b) ** 2 for a, b, s in axes)
    assert frechet_distance(base * one, base * two + shift) == pytest.approx(expected, abs=1e-5)


def test_covariances_that_do_not_commute() -> None:
    base = whitened(64, 2)
    turned = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)  # symmetric: the samples' root
    stretch = torch.tensor([2.0, 0.5], dtype=torch.float64)
    # tr (C1 C2)^(1/2) of 2 x 2 matrices is sqrt(tr(C1 C2) + 2 sqrt(det(C1 C2))).
    product = turned @ turned @ torch.diag(stretch**2)
    cross = math.sqrt(product.trace().item() + 2 * math.sqrt(torch.linalg.det(product).item()))
    expected = (turned @ turned).trace().item() + stretch.square().sum().item() - 2 * cross
    assert frechet_distance(base @ turned, base * stretch) == pytest.approx(expected, rel=1e-9)


@settings(deadline=None, max_examples=30)
@given(SEEDS, SEEDS, DIMS, st.integers(2, 40))
def test_it_is_symmetric_not_negative_and_blind_to_rotation(one: int, two: int, dim: int, count: int) -> None:
    a, b = gaussian(one, count, dim), gaussian(two, 25, dim)
    rotation, _ = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))
    distance, scale = frechet_distance(a, b), 1 + (a.square().sum(1).mean() + b.square().sum(1).mean()).item()
    assert distance >= 0
    # The root of an eigenvalue that should be 0 is as large as the root of the rounding.
    assert frechet_distance(b, a) == pytest.approx(distance, abs=1e-5 * scale)
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(distance, abs=1e-5 * scale)


def test_small_samples_make_it_too_large() -> None:
    few, many = (frechet_distance(gaussian(1, n, 6)[: n // 2], gaussian(1, n, 6)[n // 2 :]) for n in (40, 4000))
    assert few > 5 * many > 0


def by_channel(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.mean((2, 3))


def test_fid_of_brighter_pictures() -> None:
    pictures = torch.rand(30, 3, 4, 4)
    assert fid(pictures + 0.5, pictures, by_channel) == pytest.approx(3 * 0.25, abs=1e-6)


def test_t_fid_sees_flicker_and_not_looks() -> None:
    videos = torch.rand(10, 1, 3, 4, 4) + torch.linspace(0, 0.3, 4)[None, :, None, None, None]
    assert t_fid(videos + 0.5, videos, by_channel) == pytest.approx(0, abs=1e-9)
    # Twice the speed: steps of 0.2 instead of 0.1 in each of three features, without any spread.
    assert t_fid(2 * (videos - videos[:, :1]), videos, by_channel) == pytest.approx(3 * 0.1**2, abs=1e-6)
    flicker = videos + 0.1 * torch.tensor([1.0, -1.0, 1.0, -1.0])[None, :, None, None, None]
    # Steps of 0.1 -/+ 0.2: the mean moves by 0.2 / 3, and the spread is new.
    spread = torch.tensor([-0.2, 0.2, -0.2]).repeat(10)
    assert t_fid(flicker, videos, by_channel) == pytest.approx(3 * (spread.mean() ** 2 + spread.var()).item(), rel=1e-4)


@pytest.mark.parametrize(
    ("features", "reference", "message"),
    [
        (torch.zeros(1, 4), torch.zeros(9, 4), r"features must be \(N, D\) with N of at least 2, got shape \(1, 4\)"),
        (torch.zeros(9, 4), torch.zeros(9), r"reference must be \(N, D\)"),
        (torch.zeros(9, 4), torch.zeros(9, 5), "expected features of one length, got 4 and 5"),
        (torch.full((9, 4), math.nan), torch.zeros(9, 4), "features hold NaN or infinity"),
    ],
)
def test_what_has_no_distance(features: torch.Tensor, reference: torch.Tensor, message: str) -> None:
    with pytest.raises(StackError, match=message):
        frechet_distance(features, reference)
    with pytest.raises(StackError, match="of at least two frames"):
        t_fid(torch.zeros(5, 1, 3, 4, 4), torch.zeros(5, 4, 3, 4, 4), by_channel)
