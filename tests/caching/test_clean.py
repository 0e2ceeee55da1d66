"""Data prediction and its corrector: steps as numbers, exact where the estimate moves on a straight line."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from stack import Stack, StackError
from stack.caching.cache import Cache
from stack.caching.corrector import Corrector, between
from stack.caching.sites.x0_prediction import X0Prediction
from stack.core.installer import Installer
from stack.models.sampler import affine_steps, flow_steps, linear_step
from stack.models.schedule import uniform
from stack.runtime.call import DenoiserCall, InterceptorChain

from ..clocks import advance, clock_of
from ..conftest import PROMPT, picture, tiny_pipe
from .rig import controller_of

STEPS = 14


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_ddim_steps_are_the_schedulers_own(kind: str) -> None:
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False, beta_schedule="squaredcos_cap_v2")
    scheduler.set_timesteps(10)
    for step, t in zip(affine_steps(scheduler), scheduler.timesteps, strict=True):
        assert (step.a, step.b) == pytest.approx(linear_step(scheduler, t), rel=1e-4, abs=1e-6)
        x, m = torch.tensor([[[[0.7]]]]), torch.tensor([[[[-0.4]]]])
        clean = scheduler.step(m, t, x).pred_original_sample
        assert step.c * 0.7 - step.d * 0.4 == pytest.approx(float(clean), rel=1e-4, abs=1e-5)


def test_flow_steps_are_the_schedulers_own() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    steps = affine_steps(scheduler)
    scheduler.set_begin_index(0)
    assert len(steps) == 10 and steps[-1].keeps == pytest.approx(0)
    for index, (step, t) in enumerate(zip(steps, scheduler.timesteps, strict=True)):
        scheduler._step_index = index
        assert (step.a, step.b) == pytest.approx(linear_step(scheduler, t), rel=1e-5)


def test_other_samplers_are_refused_and_the_model_is_left_alone() -> None:
    pipe = tiny_pipe()
    before = picture(pipe, STEPS)
    own, other = pipe.scheduler, UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    pipe.scheduler = other
    words = "UniPCMultistepScheduler is no plain one-step sampler"
    with pytest.raises(StackError, match=words):  # by the plan, before any other pass has touched a weight
        _ = Stack(pipe, steps=STEPS).quantize("int8").cache("predictor-corrector").plan
    pipe.scheduler = own
    stack = Stack(pipe, steps=STEPS).cache("predictor-corrector")
    pipe.scheduler = other  # exchanged behind the stack's back
    with pytest.raises(StackError, match=words):
        stack.apply()
    pipe.scheduler = own
    assert torch.equal(picture(pipe, STEPS), before)


@settings(deadline=None, max_examples=30)
@given(st.integers(3, 12), st.floats(-2, 2), st.floats(-2, 2), st.floats(-2, 2), st.data())
def test_the_corrector_retakes_the_steps_on_the_straight_line(
    steps: int, x: float, early: float, late: float, data: st.DataObject
) -> None:
    table = uniform(steps, 3.0)
    plan, times = flow_steps(table.sigmas), [table.time(s) for s in table.sigmas]
    first = data.draw(st.integers(0, steps - 3))
    last = data.draw(st.integers(first + 2, steps - 1))
    forecasts = [data.draw(st.floats(-2, 2)) for _ in range(first + 1, last)]
    used = wanted = x
    for s, forecast in zip(range(first + 1, last), forecasts, strict=True):
        share = (times[s] - times[first]) / (times[last] - times[first])
        used = plan[s].keeps * used + plan[s].adds * forecast
        wanted = plan[s].keeps * wanted + plan[s].adds * ((1 - share) * early + share * late)
    segment = [(s, times[s]) for s in range(first + 1, last)]
    a, b = between(plan, segment, times[first], times[last])
    running = 0.0
    for s, forecast in zip(range(first + 1, last), forecasts, strict=True):
        running = plan[s].keeps * running + plan[s].adds * forecast
    assert a * early + b * late - running == pytest.approx(wanted - used, abs=1e-9)


class Sampler:
    """Euler's loop over a denoiser whose estimate of the clean sample is a given function of time, and ignores x."""

    def __init__(self, **options: Any):
        policy = Cache("predictor-corrector", **options).policy
        self.table = uniform(12, 3.0)
        self.clock, self.chain, self.plan = clock_of(self.table), InterceptorChain(), flow_steps(self.table.sigmas)
        controller = controller_of(policy, self.clock)
        self.journal = controller.journal
        self.chain.add(Installer(), X0Prediction(controller, lambda: self.plan))
        if policy.corrected:
            self.chain.add(Installer(), Corrector(controller, lambda: self.plan))

    def run(self, clean: Any, until: int = 12) -> torch.Tensor:
        x = torch.full((1, 2, 3), 0.5, dtype=torch.float64).float()
        for step, sigma in list(zip(self.plan, self.table.sigmas, strict=True))[:until]:
            time = self.table.time(sigma)

            def denoiser(latent: torch.Tensor, time: float = time, sigma: float = sigma) -> tuple[torch.Tensor]:
                return ((latent - clean(time)) / sigma,)

            self.journal.begin(advance(self.clock, sigma, tuple(x.shape)))
            call = DenoiserCall(partial(denoiser, x), {"hidden_states": x, "return_dict": False})
            x = step.a * x + step.b * self.chain.run(call)[0]
        return x


def test_a_straight_estimate_is_followed_exactly() -> None:
    full = Sampler(full_steps=tuple(range(12)), steps=12)
    cached = Sampler(full_steps=(0, 1, 6, 11), steps=12, coordinate="time")
    line = [lambda u: 0.3 - 0.8 * u] * 2
    torch.testing.assert_close(cached.run(line[0]), full.run(line[1]), atol=1e-5, rtol=0)


def test_what_the_forecast_missed_is_put_right() -> None:
    """A kink: the forecast goes on straight, the corrector learns of it at the next full step."""

    def kink(u: float) -> float:
        return 0.0 if u > 0.6 else 0.6 - u

    choices: dict[str, Any] = {"full_steps": (0, 3, 8, 9, 10, 11), "steps": 12, "coordinate": "time"}
    # Before the end, which is the last estimate itself, whatever came before.
    truth = Sampler(full_steps=tuple(range(12)), steps=12).run(kink, until=9)
    missed, righted = (Sampler(**choices, corrected=c).run(kink, until=9) for c in (False, True))
    assert float((missed - truth).abs().max()) > 0.01
    assert float((righted - truth).abs().max()) < 0.6 * float((missed - truth).abs().max())


def test_interval_1_changes_nothing() -> None:
    pipe = tiny_pipe()
    before = picture(pipe, STEPS)
    with Stack(pipe, steps=STEPS).cache("predictor-corrector", interval=1) as stack:
        assert torch.equal(picture(stack, STEPS), before)
    assert torch.equal(picture(pipe, STEPS), before)


def test_batched_equals_one_by_one() -> None:
    prompts = [PROMPT, "a green circle"]
    stack = Stack(tiny_pipe(), steps=STEPS).cache("predictor-corrector", interval=4)
    together = picture(stack, STEPS, prompt=prompts)
    assert "F....F...F..FF" in str(stack.report())
    for i, prompt in enumerate(prompts):
        alone = picture(stack, STEPS, prompt=prompt, seed=1 + i)
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)
