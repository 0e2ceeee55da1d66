"""Where full steps should be: exact against brute force, and the errors it is fed are the errors one measures."""

from __future__ import annotations

import random
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack import Stack
from stack.caching.forecast import Forecast
from stack.calibration.propose import learn_weights
from stack.calibration.theory import best_schedule
from stack.calibration.trajectory import SegmentErrors, Trajectory, error_weights, growth, recorder
from stack.models.sampler import linear_form

from ...conftest import picture, tiny_pipe

STEPS = 12


def total(cost: object, full: tuple[int, ...], steps: int) -> float:
    assert callable(cost)
    return sum(cost(h, i, j) for h, i, j in zip((-1, *full), full, (*full[1:], steps), strict=False))


@settings(deadline=None, max_examples=25)
@given(st.integers(5, 10), st.integers(2, 4), st.integers(0, 999))
def test_the_best_schedule_is_the_best_of_all(steps: int, count: int, seed: int) -> None:
    rng = random.Random(seed)
    table = {
        (h, i, j): rng.random() * (j - i) for h in range(-1, steps) for i in range(steps) for j in range(steps + 1)
    }

    def cost(h: int, i: int, j: int) -> float:
        return table[h, i, j]

    found, value = best_schedule(cost, count, steps, longest=steps)
    every = [(0, *rest) for rest in combinations(range(1, steps), count - 1)]
    assert value == pytest.approx(min(total(cost, full, steps) for full in every))
    assert total(cost, found, steps) == pytest.approx(value) and len(found) == count


def test_no_run_of_cached_steps_is_longer_than_asked_for() -> None:
    found, _ = best_schedule(lambda h, i, j: -(float(j - i) ** 3), 5, 20, longest=5)
    assert max(b - a for a, b in pairwise((*found, 20))) <= 6


def record(pipe: object, reused: tuple[int, ...] = ()) -> Trajectory:
    trajectory = Trajectory()
    stack = Stack(pipe, steps=STEPS).cache("svd").replace(recorder(trajectory, reused))
    picture(stack, STEPS)
    stack.undo()
    return trajectory


def test_recording_changes_nothing_and_the_heads_are_the_models_own() -> None:
    pipe = tiny_pipe()
    outputs: list[torch.Tensor] = []
    before = picture(pipe, STEPS)
    handle = pipe.transformer.register_forward_hook(lambda module, args, out: outputs.append(out[0]))
    trajectory = record(pipe)
    handle.remove()
    assert torch.equal(picture(pipe, STEPS), before)
    places = (torch.arange(64) * 7919) % 64
    for feature, head, output in zip(trajectory.features, trajectory.heads, outputs, strict=True):
        torch.testing.assert_close(head(feature), output[:, places], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_predicted_segment_is_what_the_first_cached_step_leaves() -> None:
    """One cached step just before the end: nothing feeds back, so the predicted error is the measured one."""
    pipe, full = tiny_pipe(), tuple(s for s in range(STEPS) if s != STEPS - 1)
    trajectory = record(pipe)
    scale = error_weights(linear_form(pipe.scheduler).output_weights, [1.0] * STEPS)
    errors = SegmentErrors(trajectory, scale, Forecast(1, (1.0, 1.0)))
    stack = Stack(pipe, steps=STEPS).cache("svd", full_steps=full, steps=STEPS, gains=(1.0, 1.0))

    def latents(run: object) -> torch.Tensor:
        assert callable(run)
        return run("a red ring left of a blue star", num_inference_steps=STEPS, output_type="latent",
                   generator=torch.Generator().manual_seed(1)).images  # fmt: skip

    cached, exact = latents(stack), latents(stack.undo().pipe)
    places = (torch.arange(64) * 7919) % 64
    predicted = errors.vector(STEPS - 3, STEPS - 2, STEPS)
    torch.testing.assert_close(predicted, (cached - exact)[:, places], rtol=1e-3, atol=1e-5)


def test_weights_of_a_flow_are_its_sigma_gaps() -> None:
    pipe = tiny_pipe()
    picture(pipe, STEPS)
    sigmas = pipe.scheduler.sigmas
    found = linear_form(pipe.scheduler).output_weights
    assert found == pytest.approx((sigmas[1:] - sigmas[:-1]).tolist(), abs=1e-6)
    assert error_weights([2.0, 3.0], [4.0, 8.0]) == [4.0, 3.0]


def test_growth_follows_a_disturbance() -> None:
    pipe = tiny_pipe()
    plain, disturbed = record(pipe), record(pipe, reused=(1, 2))
    sizes = growth(plain, disturbed, after=3)
    assert len(sizes) == STEPS and sizes[0] == sizes[1] == sizes[2]
    expected = float((plain.inputs[5] - disturbed.inputs[5]).norm())
    assert sizes[4] == pytest.approx(expected)
    assert torch.equal(plain.inputs[1], disturbed.inputs[1]) and not torch.equal(plain.inputs[2], disturbed.inputs[2])


def test_weights_are_learnt_where_errors_come_from() -> None:
    """Errors that come from the first stretch alone: it gets the larger weight, more so with more trials."""
    rng = np.random.default_rng(0)
    ratios = []
    for trials in (2, 5, 40):
        costs = rng.uniform(0.5, 2, (trials, 5))
        weights = learn_weights(costs, costs[:, 0])
        ratios.append(weights[0] / weights[1:].mean())
        assert (weights > 0).all()
    assert 1 < ratios[0] < ratios[2] and ratios[2] > 3


@given(st.integers(1, 6), st.floats(1e-6, 1e3), st.integers(0, 99))
def test_errors_as_predicted_need_one_common_weight(trials: int, scale: float, seed: int) -> None:
    costs = np.random.default_rng(seed).uniform(0.1, 1, (trials, 5))
    assert learn_weights(costs, scale * costs.sum(1)) == pytest.approx(np.full(5, scale), rel=1e-6)
