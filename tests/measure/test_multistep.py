from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from stack import StackError
from stack.measure.multistep import discrete_times, multistep_of
from stack.reference.shapes_flux import new_scheduler
from training.shapes_dit import new_scheduler as new_ddim

START = torch.tensor([[[1.3, -0.4]]], dtype=torch.float64)
SPREAD = 0.5  # standard deviation of the toy data


def solve(scheduler: Any, steps: int, mu: float | None = 1.1) -> torch.Tensor:
    """Follow the exact velocity of Gaussian data of this spread from noise to data; the flow is START * SPREAD."""
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu, device="cpu")
    scheduler.set_begin_index(0)
    x = START
    for t in scheduler.timesteps:
        s = float(t) / 1000
        velocity = (s - (1 - s) * SPREAD**2) / ((1 - s) ** 2 * SPREAD**2 + s**2) * x
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
    return x


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 60), st.floats(0.0, 1.2))
def test_noise_levels_are_those_of_the_euler_scheduler(steps: int, mu: float) -> None:
    euler, multistep = new_scheduler(), multistep_of(new_scheduler())
    assert multistep is not None
    euler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu, device="cpu")
    multistep.set_timesteps(steps, mu=mu, device="cpu")
    assert torch.allclose(multistep.sigmas, euler.sigmas, atol=2e-6)
    assert multistep.timesteps.dtype == euler.timesteps.dtype == torch.float32
    assert torch.allclose(multistep.timesteps, euler.timesteps, atol=1e-3)


def test_a_fixed_shift_is_taken_over() -> None:
    euler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    multistep = multistep_of(euler)
    assert multistep is not None
    multistep.set_timesteps(4, device="cpu")
    u = torch.tensor([1.0, 0.75, 0.5, 0.25])
    assert torch.allclose(multistep.sigmas[:-1], 3 * u / (1 + 2 * u), atol=2e-6)


@pytest.mark.parametrize(("steps", "closer"), [(10, 1.4), (25, 8.0)])
def test_it_is_closer_to_the_exact_flow_than_euler(steps: int, closer: float) -> None:
    exact = START * SPREAD
    euler = (solve(new_scheduler(), steps) - exact).abs().max()
    multistep = (solve(multistep_of(new_scheduler()), steps) - exact).abs().max()
    assert multistep < euler / closer, (float(multistep), float(euler))


def test_many_steps_of_both_agree() -> None:
    # Euler is of first order: 8 times the steps, an eighth of the distance between the two.
    near = (solve(new_scheduler(), 400) - solve(multistep_of(new_scheduler()), 400)).abs().max()
    far = (solve(new_scheduler(), 50) - solve(multistep_of(new_scheduler()), 50)).abs().max()
    assert near < far / 6, (float(near), float(far))


def test_times_are_walked_whatever_the_pipeline_asks_for() -> None:
    times = (1.0, 0.7, 0.2)
    flow = multistep_of(FlowMatchEulerDiscreteScheduler(shift=3.0), times)
    assert flow is not None
    flow.set_timesteps(sigmas=np.linspace(1, 0.1, 10), device="cpu")
    u = torch.tensor(times)
    assert torch.allclose(flow.sigmas, torch.cat([3 * u / (1 + 2 * u), torch.zeros(1)]), atol=2e-6)
    ddim = multistep_of(DDIMScheduler(), times)
    assert ddim is not None
    ddim.set_timesteps(10, device="cpu")
    assert ddim.timesteps.tolist() == [999, 699, 199]


def diffuse(scheduler: Any, steps: int) -> torch.Tensor:
    """Follow the exact velocity of Gaussian data of this spread along the cosine schedule."""
    alphas = new_ddim().alphas_cumprod.double()
    scheduler.set_timesteps(steps)
    x = START[None]
    for t in scheduler.timesteps:
        a, s = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
        spread = (a * SPREAD) ** 2 + s**2
        velocity = (a * s - s * a * SPREAD**2) / spread * x
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
    return x


def test_ddim_gets_a_second_order_solver_on_its_own_times() -> None:
    exact = diffuse(new_ddim(), 1000)
    ddim, multistep = new_ddim(), multistep_of(new_ddim())
    assert multistep is not None
    for steps in (5, 10, 50):
        ddim.set_timesteps(steps)
        multistep.set_timesteps(steps)
        assert multistep.timesteps.tolist() == ddim.timesteps.tolist()
    near = (diffuse(multistep, 25) - exact).abs().max()
    assert near < (diffuse(new_ddim(), 25) - exact).abs().max() / 20


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_discrete_times_fall_and_stay_in_range(drawn: list[float]) -> None:
    times = discrete_times(sorted(drawn, reverse=True), 30)
    assert all(a > b for a, b in zip(times, [*times[1:], -1], strict=True))
    assert times[-1] >= 0 and times[0] < 30


def test_more_times_than_steps_are_refused() -> None:
    with pytest.raises(StackError, match="3 times do not fit below step 2"):
        discrete_times((1.0, 0.9, 0.8), 2)


def test_other_schedulers_have_no_such_control() -> None:
    assert multistep_of(DDPMScheduler()) is None


@pytest.mark.parametrize("entry", ["invert_sigmas", "stochastic_sampling", "use_karras_sigmas"])
def test_a_flow_on_other_levels_has_no_such_control(entry: str) -> None:
    assert multistep_of(FlowMatchEulerDiscreteScheduler(shift=3.0, **{entry: True})) is None


def test_times_told_to_the_denoiser_are_those_of_the_pipeline() -> None:
    """CogView4 tells unshifted whole times beside shifted noise levels."""
    euler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    multistep = multistep_of(euler)
    assert multistep is not None
    told = np.array([1000, 750, 500, 250])
    for scheduler in (euler, multistep):
        scheduler.set_timesteps(timesteps=told, sigmas=told / 1000, device="cpu")
    assert multistep.timesteps.tolist() == euler.timesteps.tolist() == [1000.0, 750.0, 500.0, 250.0]
    assert torch.allclose(multistep.sigmas, euler.sigmas, atol=2e-6)
    step = multistep.step(torch.ones(2), multistep.timesteps[0], torch.zeros(2), return_dict=False)[0]
    assert torch.allclose(step, (euler.sigmas[1] - euler.sigmas[0]) * torch.ones(2), atol=1e-5)
