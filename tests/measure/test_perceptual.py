from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest
import torch

from stack.core.errors import StackError
from stack.measure import wheels
from stack.measure.perceptual import Perceptual, load_perceptual

PINNED = [0.44446, 0.26443]  # two smooth pictures of 64 pixels with noise of 5 %


@pytest.fixture(scope="module")
def distance() -> Perceptual:
    return load_perceptual()


def smooth(size: int = 64) -> torch.Tensor:
    coarse = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")


def noisy(pictures: torch.Tensor, share: float) -> torch.Tensor:
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))
    return (pictures + share * noise).clamp(0, 1)


def test_nothing_is_between_equal_pictures_and_more_where_there_is_more_noise(distance: Perceptual) -> None:
    pictures = smooth()
    assert distance(pictures, pictures).tolist() == [0.0, 0.0]
    found = torch.stack([distance(noisy(pictures, share), pictures) for share in (0.01, 0.05, 0.1, 0.3)])
    assert (found.diff(dim=0) > 0.05).all()


def test_it_is_symmetric_and_of_each_picture_alone(distance: Perceptual) -> None:
    some, others = smooth(), noisy(smooth(), 0.1)
    both = distance(some, others)
    torch.testing.assert_close(distance(others, some), both)
    torch.testing.assert_close(distance(some[1:], others[1:]), both[1:])


def test_its_values_are_those_it_had(distance: Perceptual) -> None:
    assert distance(noisy(smooth(), 0.05), smooth()).tolist() == pytest.approx(PINNED, rel=1e-3)


def test_it_minds_content_more_than_a_shift_by_a_pixel(distance: Perceptual) -> None:
    drawn = torch.zeros(2, 3, 64, 64)
    drawn[0, 0, 16:40, 16:40] = 1
    drawn[1, 1, 30:34, 8:56] = 1
    shifted = float(distance(drawn[:1].roll(1, -1), drawn[:1]))
    assert 0 < 4 * shifted < float(distance(drawn[1:], drawn[:1]))


def test_small_pictures_are_enlarged_and_large_ones_taken_as_they_are(distance: Perceptual) -> None:
    small = [tuple(values.shape[-2:]) for values in distance.features(smooth(32))]
    large = [tuple(values.shape[-2:]) for values in distance.features(smooth(160))]
    assert small == [(62, 62), (31, 31), (16, 16), (16, 16), (16, 16)]
    assert large[0] == (78, 78)


def test_without_the_wheel_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(wheels, "files", missing)
    with pytest.raises(
        StackError, match=r"expected the weights of stlpips-pytorch, try pip install 'ditstack\[quality"
    ):
        load_perceptual()
