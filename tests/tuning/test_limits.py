"""What a tuned stack must keep within."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stack import StackError
from stack.tuning.figures import Compared, Figures, sample
from stack.tuning.limits import WORST, Limits


def figures(psnr: float | None = 40.0, speedup: float = 5.0, **more: float | None) -> Figures:
    given = {"lpips": None, "error": None, "seconds": 1.0, "flipped": 0.0, "gigabytes": 2.0, "samples": 4} | more
    return Figures(psnr=psnr, speedup=speedup, **given)  # type: ignore[arg-type]


def test_excess_is_relative_and_adds_up() -> None:
    assert Limits(min_psnr=40).excess(figures(37.9)) == pytest.approx(0.05)
    assert Limits(min_psnr=40).excess(figures(40.0)) == 0
    assert Limits(min_psnr=40).excess(figures(39.91)) == 0, "to a tenth of a dB"
    assert Limits(min_psnr=40).excess(figures(39.86)) == pytest.approx(0.04 / 40)
    assert Limits(max_seconds=0.5).excess(figures()) == pytest.approx(1.0)
    assert Limits(min_psnr=40, max_memory=1.6).excess(figures(37.9)) == pytest.approx(0.05 + 0.25)
    assert Limits(max_lpips=0.05).excess(figures(lpips=0.06)) == pytest.approx(0.2)
    assert Limits(max_error=0.1).excess(figures(None, error=None)) == WORST


def test_with_a_limit_on_quality_time_counts_and_else_quality() -> None:
    assert Limits(min_psnr=40).cost(figures(speedup=math.e)) == pytest.approx(-1.0)
    assert Limits(max_seconds=1).cost(figures(38.5)) == -38.5
    assert Limits(max_error=0.1).output == "latent" and Limits(min_psnr=30).output == "pt"


@given(st.floats(20, 60), st.floats(0.2, 30))
def test_only_stacks_far_beyond_a_limit_or_slower_than_none_are_given_up(psnr: float, speedup: float) -> None:
    hopeless = Limits(min_psnr=40).hopeless(figures(psnr, speedup))
    assert hopeless == (psnr + 0.1 < 36 - 1e-9 or speedup < 1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "expected a limit to tune for, got none"),
        ({"min_psnr": -3.0}, "min_psnr must be positive, got -3"),
        ({"max_seconds": math.inf}, "max_seconds: expected a finite number, got inf"),
        ({"max_error": 0.1, "min_psnr": 30.0}, "expected one kind"),
        ({"min_psnr": "high"}, "min_psnr"),
    ],
)
def test_limits_that_are_none_are_refused(given: dict[str, float], words: str) -> None:
    with pytest.raises(StackError, match=words):
        Limits(**given)


def test_a_sample_compares_pictures_or_latents() -> None:
    target = torch.full((3, 4, 4), 0.5)
    made = sample(target + 0.1, target, 2.0, None, None, latent=False)
    assert made.psnr == pytest.approx(20.0, abs=1e-4) and made.error is None and made.peak_bytes == 0
    made = sample(target * 1.03, target, 2.0, 7, None, latent=True)
    assert made.error == pytest.approx(0.03, rel=1e-4) and made.psnr is None and made.peak_bytes == 7


def test_figures_are_medians_and_survive_json() -> None:
    some = [Compared(p, None, None, s, b) for p, s, b in ((20.0, 1.0, 5), (40.0, 3.0, 9), (50.0, 2.0, 7))]
    found = Figures.of(some, base_seconds=8.0)
    assert (found.psnr, found.seconds, found.speedup, found.samples) == (40.0, 2.0, 4.0, 3)
    assert found.flipped == pytest.approx(1 / 3) and found.gigabytes == 9e-9
    assert found.lpips is None and Figures(**json.loads(json.dumps(asdict(found)))) == found
