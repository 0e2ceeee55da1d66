"""The bound on the final sample's error holds for the sampler's own steps, and for what a report adds up."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from stack import Stack
from stack.bounds import final_error_bound
from stack.caching.forecast import Forecast
from stack.caching.predictor import Predictor
from stack.runtime.final_error import final_error_words, summed_error
from stack.runtime.report import CACHED, FULL, PARTIAL, StepRecord

from .conftest import picture, tiny_pipe

seeds = st.integers(0, 10_000)
CLOSE = 1 + 1e-5  # the scheduler's noise levels are float32


def sampler(count: int, shift: float) -> tuple[FlowMatchEulerDiscreteScheduler, list[float], list[float]]:
    """A scheduler, its noise levels, and the gaps between them and to 0."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(count)
    sigmas = scheduler.sigmas.tolist()
    return scheduler, sigmas[:-1], [b - a for a, b in pairwise(sigmas)]


def final(count: int, shift: float, velocity: Callable[[int, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """What the scheduler makes of ones with this velocity (step, sample)."""
    scheduler, _, _ = sampler(count, shift)
    x = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    for step, t in enumerate(scheduler.timesteps):
        x = scheduler.step(velocity(step, x), t, x, return_dict=False)[0]
    return x


@settings(deadline=None, max_examples=40)
@given(
    lipschitz=st.floats(0, 4),
    count=st.integers(1, 30),
    shift=st.sampled_from([1.0, 3.0]),
    passes=st.integers(1, 3),
    kind=st.sampled_from(["spread", "gathered", "turned"]),
    seed=seeds,
)
def test_errors_of_all_passes_in_the_final_sample(
    lipschitz: float, count: int, shift: float, passes: int, kind: str, seed: int
) -> None:
    """Worst where the velocity spreads neighbours as fast as it may, and all errors point the same way: then equal."""
    generator = torch.Generator().manual_seed(seed)
    errors = torch.rand(passes, count, generator=generator, dtype=torch.float64)
    angles = 6.28 * torch.rand(passes, count, generator=generator, dtype=torch.float64)
    angles = torch.zeros_like(angles) if kind == "spread" else angles
    off = (errors[..., None] * torch.stack([angles.cos(), angles.sin()], -1)).sum(0)
    turned = torch.tensor([[0.0, lipschitz], [-lipschitz, 0.0]], dtype=torch.float64)
    slope = {"spread": -1.0, "gathered": 1.0, "turned": 0.0}[kind] * lipschitz * torch.eye(2).double()
    slope = turned if kind == "turned" else slope
    exact = final(count, shift, lambda step, x: x @ slope)
    other = final(count, shift, lambda step, x: x @ slope + off[step])
    bound = final_error_bound(errors.sum(0).tolist(), sampler(count, shift)[2], lipschitz)
    found = float((exact - other).norm())
    assert found <= bound * CLOSE + 1e-9
    assert kind != "spread" or found == pytest.approx(bound, rel=1e-4)


def circle(sigma: float, frequency: float, phase: float) -> torch.Tensor:
    """A velocity (1, 1, 2) of norm 1 that depends on the noise level alone, not on the sample."""
    angle = frequency * sigma + phase
    return torch.tensor([[[math.cos(angle), math.sin(angle)]]], dtype=torch.float64)


@settings(deadline=None, max_examples=40)
@given(
    frequency=st.floats(0.1, 2),
    order=st.integers(0, 1),
    shift=st.sampled_from([1.0, 3.0]),
    full=st.sets(st.integers(1, 19), max_size=8),
    seed=seeds,
)
def test_what_a_report_adds_up_holds_for_forecast_velocities(
    frequency: float, order: int, shift: float, full: set[int], seed: int
) -> None:
    """Full and cached steps as a cache takes them, through the scheduler's own; the last is full: all is measured."""
    sigmas = sampler(20, shift)[1]
    whole = {0, 19, *(full if order == 0 else {1, *full})}
    predictor, records, truths, guesses = Predictor(Forecast(order, (1.0, 1.0))), [], [], []
    for step, sigma in enumerate(sigmas):
        truth = circle(sigma, frequency, seed)
        guess = predictor.predict(sigma) if predictor.ready else truth
        kind, error = (FULL, float((guess - truth).norm())) if step in whole else (CACHED, None)
        if step in whole:
            predictor.update(truth, sigma)
        records.append(record(step, sigma, kind, error if step else None))
        truths.append(truth[None])
        guesses.append(truth[None] if step in whole else guess[None])
    summed = summed_error(records, FULL)
    assert summed is not None
    found = float(
        (final(20, shift, lambda step, x: guesses[step]) - final(20, shift, lambda step, x: truths[step])).norm()
    )
    assert found <= summed * sigmas[0] * CLOSE + 1e-7
    assert full or order or shift > 1 or found >= 0.3 * summed  # one long run of reuse: within reach


def record(step: int, sigma: float, kind: str, error: float | None, branch: str = "") -> StepRecord:
    return StepRecord(step, sigma, branch, kind, error, 0.0, 0.0)


def test_a_run_has_the_error_at_its_end_and_the_worst_branch_counts() -> None:
    steps = [
        record(0, 1.0, FULL, None),
        record(1, 0.8, CACHED, None),
        record(2, 0.6, PARTIAL, None),
        record(3, 0.5, FULL, 0.1),
        record(4, 0.2, CACHED, None),  # never measured: as the last that was
    ]
    assert summed_error(steps, FULL) == pytest.approx(0.1 * 0.2 + 0.1 * 0.1 + 0.1 * 0.2)
    worse = [record(s.step, s.sigma, s.kind, s.error and 3 * s.error, "cond") for s in steps]
    assert summed_error(steps + worse, FULL) == pytest.approx(3 * 0.05)
    assert summed_error(steps[:3], FULL) is None and summed_error([], FULL) is None
    early = [record(0, 2.0, FULL, None), record(1, 1.0, CACHED, None), record(2, 0.5, FULL, 0.4)]
    assert summed_error(early, FULL) == pytest.approx(0.4 * 0.5 / 2)  # over the whole way, whatever it is


@pytest.mark.parametrize(
    ("summed", "figures", "words"),
    [
        (None, {}, ""),
        (0.05, {}, "final error: 5.00% at most, if the model does not amplify errors (sum over the steps)"),
        (0.05, {"allowed_error": 0.02, "estimated_error": 0.012}, "final error: 2.00% allowed, 1.20% estimated"),
        (
            0.05,
            {"allowed_error": 0.02, "estimated_error": 0.012, "fitted_error": 0.0165, "below_error": 0.004},
            "final error: 2.00% allowed, 1.20% estimated, 1.65% measured at worst by fit_gate, "
            "0.40% more from the passes below, measured by fit_gate",
        ),
    ],
)
def test_what_is_said_of_the_final_error(summed: float | None, figures: dict[str, float], words: str) -> None:
    assert final_error_words(summed, figures) == words


def test_a_report_shows_what_its_steps_add_up_to() -> None:
    stack = Stack(tiny_pipe(), steps=14).cache("svd", interval=4)
    picture(stack, 14)
    report = stack.report()
    summed = summed_error(report.steps, FULL)
    assert summed is not None and 0 < summed <= max(each.error or 0 for each in report.steps)
    assert f"final error: {summed:.2%} at most" in str(report)
    budget = Stack(tiny_pipe(), steps=14).cache("svd", max_error=0.3)
    picture(budget, 14)
    spent = budget.report().passes["cache"]["estimated_error"]
    assert f"final error: 30.00% allowed, {spent:.2%} estimated" in str(budget.report())
