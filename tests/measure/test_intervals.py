"""Intervals over prompts: against the textbook's numbers, and how often they hold the truth."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from stack.comparison.intervals import psnr_interval, ratio_interval


def test_the_interval_of_a_speedup_is_student_s() -> None:
    # Speedups of 2, 2.2 and 1.8; t for two degrees of freedom is 4.3027.
    base, other = [10.0, 11.0, 9.0], [5.0, 5.0, 5.0]
    half = (
        math.sqrt(math.pi / 2)
        * 4.302652729
        * statistics.stdev([math.log(2.0), math.log(2.2), math.log(1.8)])
        / math.sqrt(3)
    )
    assert ratio_interval(2.0, base, other) == pytest.approx([2 * math.exp(-half), 2 * math.exp(half)])
    assert ratio_interval(2.0, [10.0, 20.0], [5.0, 10.0]) == pytest.approx([2.0, 2.0])  # the same on every prompt
    low, high = ratio_interval(1.0, [1e-9, 1e9], [1.0, 1.0]) or (0.0, 0.0)
    assert 0 < low < 1e-40 and 1e40 < high < math.inf


def test_the_interval_of_a_psnr_is_that_of_the_mean_error() -> None:
    errors = [1e-4, 2e-4, 3e-4]
    each = [-10 * math.log10(error) for error in errors]
    low, high = psnr_interval(each) or (0.0, 0.0)
    pooled = -10 * math.log10(2e-4)
    assert (low + high) / 2 == pytest.approx(pooled)
    assert (high - low) / 2 == pytest.approx(10 / math.log(10) * 4.302652729 * 1e-4 / math.sqrt(3) / 2e-4)


def test_one_prompt_or_identical_pictures_have_none() -> None:
    assert ratio_interval(2.0, [10.0], [5.0]) is None and ratio_interval(None, [1.0, 2.0], []) is None
    assert psnr_interval([30.0]) is None and psnr_interval([99.0, 99.0]) is None and psnr_interval([]) is None
    low, high = psnr_interval([99.0, 40.0]) or (0.0, 0.0)
    assert 0 <= low < 43.0 < high <= 99.0


@pytest.mark.parametrize("count", [3, 8, 30])
def test_about_95_of_100_intervals_hold_the_truth(count: int) -> None:
    """Times that vary by 5 %, errors by half of their mean: figures of as many prompts against those of all."""
    rng, held, held_psnr, tries = random.Random(count), 0, 0, 1000
    for _ in range(tries):
        base = [10 * math.exp(rng.gauss(0, 0.05)) for _ in range(count)]
        other = [5 * math.exp(rng.gauss(0, 0.05)) for _ in range(count)]
        low, high = ratio_interval(statistics.median(base) / statistics.median(other), base, other) or (0.0, 0.0)
        held += low <= 2.0 <= high
        each = [-10 * math.log10(rng.uniform(0.1, 1.9) * 1e-4) for _ in range(count)]
        low, high = psnr_interval(each) or (0.0, 0.0)
        held_psnr += low <= 40.0 <= high
    assert 0.9 < held / tries <= 1 and 0.9 < held_psnr / tries <= 1
