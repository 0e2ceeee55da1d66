"""The two formulas of few-step schedules, against published numbers and against diffusers' own schedulers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from stack import StackError
from stack.distill.schedules import AdapterSchedule, constant_shift, dmd_list

shifts = st.floats(0.5, 20)


def test_the_step_list_gives_the_published_noise_levels() -> None:
    assert dmd_list([1000, 750, 500, 250], 5.0) == pytest.approx([1.0, 0.9375, 0.8333, 0.625], abs=5e-5)
    assert dmd_list([1000, 500], 5.0) == pytest.approx([1.0, 0.8333], abs=5e-5)  # mean-flow, two steps


@given(shifts, st.lists(st.integers(1, 1000), min_size=1, max_size=10, unique=True))
def test_the_step_list_picks_from_the_shifted_grid(shift: float, steps: list[int]) -> None:
    grid = [1 - i / 1000 for i in range(1000)]
    shifted = [shift * g / (1 + (shift - 1) * g) for g in grid]
    assert dmd_list(steps, shift) == pytest.approx([shifted[1000 - t] for t in steps], rel=1e-9)


@given(shifts, st.integers(1, 60))
def test_constant_shift_falls_and_is_what_diffusers_makes_of_equal_shifts(shift: float, steps: int) -> None:
    sigmas = constant_shift(steps, shift)
    assert sigmas[0] == 1 and all(a > b > 0 for a, b in itertools.pairwise(sigmas))
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=math.log(shift), max_shift=math.log(shift), base_image_seq_len=256,
        max_image_seq_len=8192, shift=1.0, shift_terminal=None, time_shift_type="exponential",
    )  # fmt: skip
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=math.log(shift))
    assert scheduler.sigmas.tolist() == pytest.approx([*sigmas, 0.0], abs=2e-6)


def test_qwen_image_lightning_at_eight_steps() -> None:
    by_hand = [3 * u / (1 + 2 * u) for u in (1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)]
    assert constant_shift(8, 3.0) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("kind", "values", "shift", "said"),
    [
        ("other", (), 1.0, "unknown kind of schedule 'other'"),
        ("sigmas", (0.5, 0.7), 1.0, r"must fall, within \(0, 1\]"),
        ("sigmas", (1.2, 0.7), 1.0, r"must fall, within \(0, 1\]"),
        ("timesteps", (1000.0, 0.0), 1.0, r"must fall, within \(0, 1000\]"),
        ("sigmas", (), 1.0, "expects a list"),
        ("shift", (1.0,), 1.0, "expects no list"),
        ("shift", (), 0.0, "shift: expected a number"),
    ],
)
def test_what_is_no_schedule(kind: str, values: tuple[float, ...], shift: float, said: str) -> None:
    with pytest.raises(StackError, match=said):
        AdapterSchedule(kind, values, shift)
