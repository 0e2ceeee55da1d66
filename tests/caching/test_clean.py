"""Data prediction and its corrector: exact where the estimate moves on a straight line."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler

from stack import Stack, StackError
from stack.caching.cache import Cache
from stack.caching.corrector import Corrector
from stack.caching.sites.x0_prediction import X0Prediction
from stack.core.installer import Installer
from stack.models.sampler import flow_form
from stack.models.schedule import uniform
from stack.runtime.call import DenoiserCall, InterceptorChain

from ..clocks import advance, clock_of
from ..conftest import PROMPT, picture, tiny_pipe
from .rig import controller_of

STEPS = 14


def test_other_samplers_are_refused_and_the_model_is_left_alone() -> None:
    pipe = tiny_pipe()
    before = picture(pipe, STEPS)
    own, other = pipe.scheduler, EulerAncestralDiscreteScheduler()
    pipe.scheduler = other
    words = "EulerAncestralDiscreteScheduler adds noise of its own"
    with pytest.raises(StackError, match=words):  # by the plan, before any other pass has touched a weight
        _ = Stack(pipe, steps=STEPS).quantize("int8").cache("predictor-corrector").plan
    pipe.scheduler = own
    stack = Stack(pipe, steps=STEPS).cache("predictor-corrector")
    pipe.scheduler = other  # exchanged behind the stack's back
    with pytest.raises(StackError, match=words):
        stack.apply()
    pipe.scheduler = own
    assert torch.equal(picture(pipe, STEPS), before)


class Sampler:
    """Euler's loop over a denoiser whose estimate of the clean sample is a given function of time, and ignores x."""

    def __init__(self, **options: Any):
        policy = Cache("predictor-corrector", **options).policy
        self.table = uniform(12, 3.0)
        self.clock, self.chain, self.plan = clock_of(self.table), InterceptorChain(), flow_form(self.table.sigmas)
        controller = controller_of(policy, self.clock)
        self.journal = controller.journal
        self.chain.add(Installer(), X0Prediction(controller, lambda: self.plan))
        if policy.corrected:
            self.chain.add(Installer(), Corrector(controller, lambda: self.plan))

    def run(self, clean: Any, until: int = 12) -> torch.Tensor:
        x = torch.full((1, 2, 3), 0.5, dtype=torch.float64).float()
        for sigma, to in list(pairwise((*self.table.sigmas, 0.0)))[:until]:
            time = self.table.time(sigma)

            def denoiser(latent: torch.Tensor, time: float = time, sigma: float = sigma) -> tuple[torch.Tensor]:
                return ((latent - clean(time)) / sigma,)

            self.journal.begin(advance(self.clock, sigma, tuple(x.shape)))
            call = DenoiserCall(partial(denoiser, x), {"hidden_states": x, "return_dict": False})
            x = x + (to - sigma) * self.chain.run(call)[0]
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
    stack = Stack(tiny_pipe(), steps=STEPS).cache("predictor-corrector", count=5)
    together = picture(stack, STEPS, prompt=prompts)
    assert "F...F...F..F.F" in str(stack.report())
    for i, prompt in enumerate(prompts):
        alone = picture(stack, STEPS, prompt=prompt, seed=1 + i)
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)
