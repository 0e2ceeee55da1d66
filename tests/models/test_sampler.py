"""Deterministic samplers as numbers: the same latents as their own steps, and why others have none."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from stack import StackError
from stack.models import sampler as module
from stack.models.sampler import LinearSampler, flow_form, linear_form, planned_sampler, why_not_linear
from stack.models.schedule import SigmaSchedule

from ..samplers import ADDS_NOISE, CLIPS, DETERMINISTIC, first_noise, given_to_denoiser

STEPS, SHAPE = 14, (1, 3, 4, 4)


def real_run(scheduler: Any, form: LinearSampler, begin: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Latents of the scheduler's own steps with random outputs, and the estimates that these amount to."""
    numbers = torch.Generator().manual_seed(1)
    x = first_noise(scheduler, SHAPE)
    latents, clean = [x], []
    for estimate, t in zip(form.estimates, scheduler.timesteps[begin:], strict=True):
        given = given_to_denoiser(scheduler, x, t)
        out = torch.randn(SHAPE, generator=numbers, dtype=torch.float64)
        clean.append(estimate.c * given + estimate.d * out)
        x = scheduler.step(out, t, x, return_dict=False)[0]
        latents.append(x)
    return latents, clean


def unexplained(latents: list[torch.Tensor], clean: list[torch.Tensor], weights: np.ndarray) -> float:
    """The largest part of a latent that is neither a sum of estimates nor a multiple of the first noise."""
    worst = 0.0
    for x, row in zip(latents, weights, strict=True):
        terms = [float(w) * x0 for w, x0 in zip(row, clean, strict=True)]
        rest = x - sum(terms)
        rest = rest - (rest * latents[0]).sum() / latents[0].square().sum() * latents[0]
        # Schedulers round to float32 what is large where estimates are: behind the first call of VP ones.
        worst = max(worst, float(rest.norm() / max(term.norm() for term in (x, *terms))))
    return worst


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_every_latent_of_a_run_is_the_sum_that_the_form_says(name: str) -> None:
    scheduler = DETERMINISTIC[name]()
    scheduler.set_timesteps(STEPS)
    form = linear_form(scheduler)
    assert form.weights.shape == (len(scheduler.timesteps) + 1, len(scheduler.timesteps))
    assert np.abs(np.triu(form.weights)).max() == 0  # no latent depends on an estimate that comes later
    latents, clean = real_run(scheduler, form)
    # Between neighbouring levels as close as these the scheduler's own float32 logarithms leave three digits less.
    close = name == "DPMSolverMultistep(use_beta_sigmas=True)"
    assert unexplained(latents, clean, form.weights) < (4e-6 if close else 1e-6)
    swapped = form.weights.copy()
    swapped[:, [3, 4]] = swapped[:, [4, 3]]
    assert unexplained(latents, clean, swapped) > 1e-3


def test_estimates_are_what_the_schedulers_call_the_original_sample() -> None:
    kinds = ("epsilon", "v_prediction", "sample")
    made = [diffusers.DDIMScheduler(prediction_type=kind, clip_sample=False) for kind in kinds]
    made += [diffusers.EulerDiscreteScheduler(prediction_type=kind) for kind in kinds[:2]]
    made += [diffusers.KDPM2DiscreteScheduler(prediction_type=kind) for kind in kinds[:2]]
    made += [diffusers.HeunDiscreteScheduler(prediction_type=kind) for kind in kinds]
    made += [diffusers.EDMEulerScheduler(prediction_type=kind) for kind in kinds[:2]]
    for scheduler in made:
        scheduler.set_timesteps(STEPS)
        form, x = linear_form(scheduler), torch.full(SHAPE, 0.7, dtype=torch.float64)
        for estimate, t in zip(form.estimates, scheduler.timesteps, strict=True):
            given, out = given_to_denoiser(scheduler, x, t), torch.full(SHAPE, -0.4, dtype=torch.float64)
            stepped = scheduler.step(out, t, x)
            clean = estimate.c * given + estimate.d * out
            torch.testing.assert_close(clean, stepped.pred_original_sample.double(), rtol=1e-4, atol=1e-5)
            x = stepped.prev_sample


def test_the_scheduler_is_left_as_it_is() -> None:
    scheduler = DETERMINISTIC["FlowMultistep"]()
    scheduler.set_timesteps(STEPS)
    x = first_noise(scheduler, SHAPE)
    for t in scheduler.timesteps[:3]:
        x = scheduler.step(torch.ones(SHAPE, dtype=torch.float64), t, x, return_dict=False)[0]
    before, state = {**vars(scheduler)}, torch.get_rng_state()
    linear_form(scheduler)
    assert all(vars(scheduler)[name] is value for name, value in before.items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [n for n in DETERMINISTIC if n.startswith(("UniPC", "Heun", "DDIM(", "FlowMatchE"))])
def test_a_run_that_begins_in_the_middle(name: str) -> None:
    scheduler, begin = DETERMINISTIC[name](), 4
    scheduler.set_timesteps(STEPS)
    if "_begin_index" in vars(scheduler):
        scheduler.set_begin_index(begin)
    form = linear_form(scheduler, begin)
    assert len(form.estimates) == len(scheduler.timesteps) - begin
    latents, clean = real_run(scheduler, form, begin)
    assert unexplained(latents, clean, form.weights) < 1e-6


def test_flow_euler_is_a_bare_flow_on_its_levels() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(STEPS)
    sigmas = scheduler.sigmas.double().tolist()
    bare, form = flow_form(sigmas[:-1]), linear_form(scheduler)
    np.testing.assert_allclose(bare.weights, form.weights, atol=1e-6)
    assert [e.d for e in bare.estimates] == pytest.approx([e.d for e in form.estimates]) == [-s for s in sigmas[:-1]]
    steps = [b - a for a, b in pairwise(sigmas)]
    assert bare.output_weights == pytest.approx(steps) and form.output_weights == pytest.approx(steps, abs=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_debts_live_as_long_as_the_sampler_remembers() -> None:
    def memory(name: str) -> int:
        scheduler = DETERMINISTIC[name]()
        scheduler.set_timesteps(30)
        return linear_form(scheduler).memory

    one_step = [n for n in DETERMINISTIC if n.startswith(("FlowMatchE", "FlowMap", "Euler", "EDMEuler", "DDIM", "Cog"))]
    assert {memory(name) for name in one_step} == {1}
    assert memory("HeunDiscrete()") == memory("KDPM2Discrete()") == 2
    assert 3 < memory("FlowMultistep") < 20 and 3 < memory("DPMSolverMultistep(solver_order=2)") < 20


def test_what_a_settled_debt_costs() -> None:
    """Flow Euler: all at once. A debt of the call just before is worth what is left of it after the step."""
    form = flow_form([1.0, 0.8, 0.5, 0.2])
    assert {k: list(f) for k, f in form.settling(2, [1]).items()} == {2: pytest.approx([0.4 * 0.375 / 0.6])}
    assert form.settling(3, [1, 2]) == {}  # the last step ends at its estimate, whatever came before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ADDS_NOISE)
def test_noise_is_refused_by_name(name: str) -> None:
    scheduler, state = ADDS_NOISE[name](), torch.get_rng_state()
    with pytest.raises(StackError, match=f"^{type(scheduler).__name__} adds noise of its own"):
        linear_form(scheduler)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", CLIPS)
def test_clipping_is_refused_by_name(name: str) -> None:
    scheduler = CLIPS[name]()
    with pytest.raises(StackError, match=f"^{type(scheduler).__name__} clips its estimates: .* off"):
        linear_form(scheduler)


def test_others_are_refused_too() -> None:
    broken = diffusers.UniPCMultistepScheduler(predict_x0=False)  # its last step divides by a level of 0
    assert "ends at numbers that are not finite" in why_not_linear(broken)
    assert "noise levels in a way that is not known" in why_not_linear(diffusers.MiniMaxH3Scheduler())


def test_a_scheduler_is_tried_once_and_again_when_it_is_configured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(module, "_judge", lambda scheduler: tried.append(scheduler) or "")
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    assert why_not_linear(scheduler) == why_not_linear(scheduler) == "" and len(tried) == 1
    scheduler.register_to_config(clip_sample=True)
    why_not_linear(scheduler)
    assert len(tried) == 2


def test_a_form_is_made_once_for_each_schedule() -> None:
    made = [SigmaSchedule((1.0, 0.5))]
    sampler = planned_sampler(None, lambda: made[0])
    first = sampler()
    assert sampler() is first and len(first.estimates) == 2
    made[0] = SigmaSchedule((1.0, 0.6, 0.3))
    assert len(sampler().estimates) == 3
