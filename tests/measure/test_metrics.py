from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.measure.metrics import CAP_DB, efficiency, interaction_db, picture_warnings, psnr, ssim


def ramp(count: int = 1, size: int = 16) -> torch.Tensor:
    return torch.linspace(0.1, 0.8, count * 3 * size * size).reshape(count, 3, size, size)


@pytest.mark.parametrize(("offset", "expected"), [(0.1, 20.0), (0.01, 40.0), (1 / 255, 48.1308)])
def test_psnr_of_a_constant_offset(offset: float, expected: float) -> None:
    assert psnr(ramp() + offset, ramp()) == pytest.approx(expected, abs=1e-3)


def test_psnr_pools_the_error_before_the_logarithm() -> None:
    pictures = ramp(2)
    pictures[1] += 0.1
    # One of two pictures at 20 dB, the other perfect: half the squared error, 3.01 dB more. Not the mean of 20 and 99.
    assert psnr(pictures, ramp(2)) == pytest.approx(20 + 10 * math.log10(2), abs=1e-3)


def test_psnr_of_identical_and_of_broken_pictures_is_a_number() -> None:
    assert psnr(ramp(), ramp()) == CAP_DB
    assert psnr(ramp() + 1e-9, ramp().double()) == CAP_DB
    assert psnr(torch.full((1, 3, 16, 16), math.nan), ramp()) == 0.0
    assert psnr(torch.full((1, 3, 16, 16), math.inf), ramp()) == 0.0


@settings(deadline=None, max_examples=30)
@given(st.floats(1e-4, 1.0), st.floats(1.01, 10.0))
def test_psnr_falls_as_the_error_grows(error: float, factor: float) -> None:
    worse = psnr(ramp().double() + error * factor, ramp().double())
    assert worse == pytest.approx(psnr(ramp().double() + error, ramp().double()) - 20 * math.log10(factor), abs=1e-6)


def test_ssim_knows_likeness_from_noise() -> None:
    noise = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert ssim(ramp(2), ramp(2)) == pytest.approx(1.0)
    assert ssim(ramp(2) + 0.02, ramp(2)) > 0.9
    assert ssim(noise, ramp(2)) < 0.2
    assert math.isfinite(ssim(torch.full((2, 3, 16, 16), math.nan), ramp(2)))


def test_picture_warnings_name_what_is_wrong() -> None:
    broken = ramp(3)
    broken[0, 0, 0, 0] = math.nan
    broken[2] = 0.0
    assert picture_warnings(broken, ramp(3), True) == [
        "1 of 3 pictures hold NaN or infinity",
        "1 of 3 pictures are one single colour",
    ]
    (idle,) = picture_warnings(ramp(), ramp(), True)
    assert "identical to base" in idle
    # A compiled base differs from the eager one in the last bit; that is not a pass at work.
    assert picture_warnings(ramp() + 1e-6, ramp(), True) == [idle]
    assert picture_warnings(ramp(), ramp(), False) == []
    assert picture_warnings(ramp() + 0.01, ramp(), True) == []


def test_efficiency_is_the_speedup_over_the_product() -> None:
    assert efficiency(6.0, [1.5, 2.0, 4.0]) == pytest.approx(0.5)
    assert efficiency(6.0, [1.5, None]) is None
    assert efficiency(None, [1.5]) is None
    assert efficiency(6.0, []) is None


def test_interaction_is_what_the_stack_loses_beyond_its_worst_pass() -> None:
    assert interaction_db(31.0, [44.0, 36.0, 40.0]) == pytest.approx(5.0)
    assert interaction_db(37.0, [44.0, 36.0]) == pytest.approx(-1.0)
    assert interaction_db(31.0, [44.0, None]) is None
    assert interaction_db(None, [44.0]) is None
