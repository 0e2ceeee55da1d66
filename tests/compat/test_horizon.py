"""Schedules carried to other noise levels, and what few steps can save."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stack.caching.schedule_policy import SchedulePolicy
from stack.compat.horizon import forecast_cost, most_saved, partial_depth, transfer_schedule, uniform_levels
from stack.compat.noise import rounding_floor

full_steps = st.integers(2, 100).flatmap(
    lambda steps: st.tuples(st.just(steps), st.sets(st.integers(1, steps - 1)).map(lambda s: (0, *sorted(s))))
)


@given(full_steps, st.floats(0.2, 12))
def test_a_schedule_carried_to_its_own_noise_levels_is_itself(drawn: tuple[int, tuple[int, ...]], shift: float) -> None:
    steps, full = drawn
    sigmas = [shift * u / (1 + (shift - 1) * u) for u in uniform_levels(range(steps), steps)]
    assert transfer_schedule([sigmas[i] for i in full], sigmas) == full


@given(full_steps, st.integers(1, 100))
def test_no_full_step_moves_by_more_than_half_a_step(drawn: tuple[int, tuple[int, ...]], other: int) -> None:
    steps, full = drawn
    at = uniform_levels(full, steps)
    found = transfer_schedule(at, uniform_levels(range(other), other))
    assert found[0] == 0 and len(found) <= len(full)
    for level in at:
        off = min(abs(1 - i / other - level) for i in found)
        assert off <= 0.5 / other + 1e-9 or level < 1 / other  # below the last step there is none


def test_twice_the_steps_keep_the_full_ones_and_the_estimated_error() -> None:
    full = (0, 2, 5, 9, 14)
    twice = transfer_schedule(uniform_levels(full, 20), uniform_levels(range(40), 40))
    assert twice == tuple(2 * i for i in full)
    then = forecast_cost(full, uniform_levels(range(20), 20), 1)
    now = forecast_cost(twice, uniform_levels(range(40), 40), 1)
    assert now == pytest.approx(then, rel=0.2)
    # By hand, order 0: cached steps 1, 3 of 4 at equal weights, each a quarter behind its full step.
    assert forecast_cost((0, 2), (1.0, 0.75, 0.5, 0.25), 0) == pytest.approx(2 * 0.25 * 0.25)


@given(full_steps)
def test_running_one_more_step_never_costs(drawn: tuple[int, tuple[int, ...]]) -> None:
    steps, full = drawn
    sigmas = uniform_levels(range(steps), steps)
    for extra in range(steps):
        assert forecast_cost(sorted({*full, extra}), sigmas, 1) <= forecast_cost(full, sigmas, 1) + 1e-12


def test_segments_of_a_carried_schedule_stay_with_their_full_steps() -> None:
    policy = SchedulePolicy(full_steps=(0, 10, 20), steps=40, segments=(1.0, 0.5, 0.25))
    assert [policy.gain(step, 20) for step in (0, 5, 10)] == [1.0, 0.5, 0.25]


@pytest.mark.parametrize(("blocks", "front", "back"), [(2, 1, 0), (3, 1, 1), (6, 2, 2), (28, 9, 9), (57, 19, 19)])
def test_a_third_of_the_blocks_at_either_end_runs(blocks: int, front: int, back: int) -> None:
    assert partial_depth(blocks) == (front, back)


def test_what_can_be_saved_counts_block_calls() -> None:
    assert most_saved(4, 8) == 2
    assert most_saved(4, 8, always=2 / 3) == pytest.approx(8 / (4 + 4 * 2 / 3))


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_the_rounding_floor_is_that_of_normal_rows(bits: int) -> None:
    rows = torch.randn(512, 768, generator=torch.Generator().manual_seed(0))
    scale = rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    error = (rows / scale).round() * scale - rows
    assert rounding_floor(bits, 768) == pytest.approx(float(error.norm() / rows.norm()), rel=0.2)
    assert rounding_floor(bits - 1, 768) > 1.9 * rounding_floor(bits, 768)
    assert math.isclose(rounding_floor(8, 192), 0.0078, rel_tol=0.02)
