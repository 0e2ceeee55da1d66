"""The corrector behind caches of the model's insides: what it adds is what retaken steps would have come to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler

from stack import Stack, StackError
from stack.caching.cache import Cache
from stack.core.plan import make_plan
from stack.models.sampler import LinearSampler, linear_form

from ..conftest import PROMPT, picture, tiny_pipe
from ..models import test_dit
from ..test_plan import FACTS

STEPS = 14
FULL = (0, 1, 6, 10)
SCHEDULED = [
    "svd-published",
    "reuse",
    "svd-published-blocks",
    "taylorseer-published",
    "fora-published",
    "pab-published",
    "freqca-published",
    "toca-published",
    "duca-published",
]


def latents(run: Any, **options: Any) -> list[torch.Tensor]:
    """The latent (1, N, C) behind every step of a FLUX pipeline; the noise first."""
    seen: list[torch.Tensor] = []

    def note(pipe: Any, step: int, t: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append(state["latents"].clone())
        return {}

    generator = torch.Generator().manual_seed(3)
    given = {"num_inference_steps": STEPS, "output_type": "latent", "generator": generator}
    run(PROMPT, callback_on_step_end=note, **given, **options)
    return seen


def kept_and_added(sampler: LinearSampler, step: int) -> tuple[float, float]:
    """Of a step from x with an estimate x0: x' = kept x + added x0, here of flow Euler."""
    e, weight = sampler.estimates[step], sampler.output_weights[step]
    return 1 - weight * e.c / e.d, weight / e.d


@pytest.mark.parametrize("method", SCHEDULED)
def test_the_step_behind_a_full_one_is_where_retaken_steps_lead(method: str) -> None:
    pipe = tiny_pipe()
    options: dict[str, Any] = {"full_steps": FULL, "steps": STEPS}
    with Stack(pipe, steps=STEPS).cache(method, corrected=False, **options) as plain:
        missed = latents(plain)
    with Stack(pipe, steps=STEPS).cache(method, corrected=True, **options) as stack:
        righted = latents(stack)
        sampler = linear_form(pipe.scheduler)
        kinds = [step.kind for step in stack.report().steps]
    end = FULL[2]
    for step in range(end):  # up to the first full step behind a cached one nothing differs
        assert torch.equal(missed[step], righted[step])
    assert kinds[end] == "full" and {kinds[step] for step in range(2, end)} <= {"cached", "partial"}
    (kept, added), (kept_last, added_last) = kept_and_added(sampler, 1), kept_and_added(sampler, end)
    early = (missed[1] - kept * missed[0]) / added
    late = (missed[end] - kept_last * missed[end - 1]) / added_last
    x = missed[1]
    for step in range(2, end):
        share = (step - 1) / (end - 1)  # evenly spaced in the schedule's unshifted time
        kept, added = kept_and_added(sampler, step)
        x = kept * x + added * ((1 - share) * early + share * late)
    expected = kept_last * x + added_last * late
    torch.testing.assert_close(righted[end], expected, atol=2e-4, rtol=0)
    assert float((righted[end] - missed[end]).abs().max()) > 1e-3


@pytest.mark.parametrize("method", ["svd-published", "toca-published"])
def test_every_step_full_changes_nothing(method: str) -> None:
    pipe = tiny_pipe()
    before = picture(pipe, STEPS)
    with Stack(pipe, steps=STEPS).cache(method, interval=1, corrected=True) as stack:
        assert torch.equal(picture(stack, STEPS), before)
    assert torch.equal(picture(pipe, STEPS), before)


def test_batched_equals_one_by_one_and_a_second_request_the_first() -> None:
    prompts = [PROMPT, "a green circle"]
    stack = Stack(tiny_pipe(), steps=STEPS).cache("svd-published", interval=4, corrected=True)
    together = picture(stack, STEPS, prompt=prompts)
    for i, prompt in enumerate(prompts):
        alone = picture(stack, STEPS, prompt=prompt, seed=1 + i)
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)
    assert torch.equal(picture(stack, STEPS, prompt=prompts), together)


def test_guidance_in_one_batch_is_corrected_too() -> None:
    """The correction of a guided output is the guided sum of the branches' corrections."""
    pipe = test_dit.tiny()
    plain, righted = (Stack(pipe, steps=STEPS).cache("svd-published", interval=5, corrected=c) for c in (False, True))
    with plain:
        missed = test_dit.draw(plain)
    with righted:
        made = test_dit.draw(righted)
        assert "full steps correct the error of the forecasts before them" in righted.explain()
    assert 0 < float((made - missed).abs().max()) < 1


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        (EulerAncestralDiscreteScheduler(), "EulerAncestralDiscreteScheduler adds noise of its own"),
        (DDIMScheduler(), "DDIMScheduler clips its estimates"),
    ],
)
def test_a_sampler_that_is_no_sum_has_none_and_is_told(scheduler: Any, words: str) -> None:
    pipe = tiny_pipe()
    pipe.scheduler = scheduler
    stack = Stack(pipe, steps=STEPS).cache("svd", interval=4, corrected=True)
    found = str([str(finding) for finding in stack.plan.findings])
    assert words in found and "rule sampler-not-plain" in found
    assert not next(p for p in stack.plan.passes() if isinstance(p, Cache)).policy.corrected
    with pytest.raises(StackError, match=words):
        _ = Stack(pipe, steps=STEPS, strict=True).cache("svd", interval=4, corrected=True).plan


@pytest.mark.parametrize(("pipeline", "sampler"), [(True, ""), (False, ""), (True, "noise on every step")])
def test_few_steps_are_corrected_behind_a_sampler_that_is_known(pipeline: bool, sampler: str) -> None:
    facts = replace(FACTS, steps=8, pipeline=pipeline, sampler=sampler)
    (cache,) = make_plan(facts, [Cache("svd-published")]).passes()
    possible = pipeline and not sampler
    assert cache.policy.corrected == possible
    assert (cache.policy.site.front_blocks, cache.policy.schedule.count) == ((0, 5) if possible else (2, 0))


def test_a_bare_denoiser_that_is_no_flow_is_not_taken_for_one() -> None:
    stack = Stack(test_dit.tiny().transformer, steps=STEPS).cache("svd-published", corrected=True)
    assert not stack.plan.passes()[0].policy.corrected
    with pytest.raises(StackError, match="a bare dit denoiser does not tell its sampler"):
        _ = Stack(test_dit.tiny().transformer, steps=STEPS).cache("predictor-corrector").plan


def test_more_channels_out_than_in_have_none_either() -> None:
    plan = make_plan(replace(FACTS, latent=(4, 12)), [Cache("svd-published", corrected=True)])
    assert not plan.passes()[0].policy.corrected
    assert "a variance behind them, got 12 for 4" in str([str(finding) for finding in plan.findings])


@pytest.mark.parametrize(
    "options", [{"method": "speca-published"}, {"method": "easycache-published"}, {"method": "fastcache"}]
)
def test_where_steps_are_taken_back_or_parts_decide_it_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(StackError, match="a corrector cannot go with"):
        Cache(**options, corrected=True)
