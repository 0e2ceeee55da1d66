"""A cache that is given an error instead of a schedule."""

from __future__ import annotations

import pytest
import torch

from stack import Stack, StackError
from stack.caching.cache import Cache
from stack.caching.gate_policies import BudgetPolicy
from tests.conftest import tiny_pipe

STEPS, PROMPTS = 20, ["a red ring", "a blue star"]
OTHER = "a green circle"


def latents(stack: Stack, prompt: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return stack(prompt, generator=generator, output_type="latent").images


def stack_of(max_error: float) -> Stack:
    return Stack(tiny_pipe(), steps=STEPS).cache("svd-published", max_error=max_error, gains=(1.0, 1.0))


@pytest.mark.parametrize("allowed", [0.003, 0.03])
def test_a_fitted_budget_is_kept_on_another_prompt(allowed: float) -> None:
    with Stack(tiny_pipe(), steps=STEPS) as plain:
        exact = latents(plain, OTHER, 7)
    stack = stack_of(allowed)
    assert "estimate not fitted" in stack.explain()
    stack.fit_gate(PROMPTS)
    scale = stack.passes[0].policy.gate.error_scale
    assert scale > 0 and scale != 1 and "as fitted" in stack.explain()
    assert "weight_bits=32" in stack.passes[0].policy.calibrated_for
    with stack:
        got = latents(stack, OTHER, 7)
        report = stack.report()
    assert 0 < float((got - exact).norm() / exact.norm()) <= allowed
    assert 0 < report.passes["cache"]["estimated_error"] < 2 * allowed
    assert report.full_steps < STEPS


def test_more_may_be_cached_where_more_is_allowed() -> None:
    full = []
    for allowed in (0.001, 0.01, 0.1):
        with stack_of(allowed) as stack:
            latents(stack, OTHER, 7)
            full.append(stack.report().full_steps)
    assert full[0] > full[1] > full[2] >= 3


def test_batched_is_one_by_one() -> None:
    with stack_of(0.01) as stack:
        apart = [latents(stack, prompt, seed) for seed, prompt in enumerate([*PROMPTS, OTHER])]
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
        together = stack([*PROMPTS, OTHER], generator=generators, output_type="latent").images
    torch.testing.assert_close(together, torch.cat(apart), atol=2e-4, rtol=0)


def test_the_error_survives_a_recipe() -> None:
    cache = Cache("svd-published", max_error=0.02)
    assert cache.changed(error_scale=2.0).measured == {"threshold": 0.02, "error_scale": 2.0}
    assert cache.policy.gate == BudgetPolicy(0.02)


@pytest.mark.parametrize(
    ("method", "options"), [("svd-published", {"max_error": 0.0}), ("dbcache", {"max_error": 0.1, "back": 1})]
)
def test_what_cannot_have_a_budget(method: str, options: dict[str, float]) -> None:
    with pytest.raises(StackError, match=r"an error budget needs back=0 and a relative error in \(0, 1\)"):
        Cache(method, **options)


def test_an_error_for_the_whole_stack_leaves_the_cache_what_the_others_do_not_use() -> None:
    pipe, allowed = tiny_pipe(), 0.05
    stack = (
        Stack(pipe, steps=STEPS, max_error=allowed)
        .quantize("int8", min_features=16)
        .cache("svd-published", gains=(1.0, 1.0))
    )
    assert stack.passes[-1].policy.gate.threshold == allowed
    stack.fit_gate(PROMPTS)
    policy = stack.passes[-1].policy.gate
    assert policy.below_error > 0 and policy.threshold == pytest.approx(allowed - policy.below_error)
    with Stack(pipe, steps=STEPS) as plain:
        exact = latents(plain, OTHER, 7)
    with stack:
        got = latents(stack, OTHER, 7)
        figures = stack.report().passes["cache"]
    assert 0 < float((got - exact).norm() / exact.norm()) <= allowed
    assert figures["below_error"] == policy.below_error
    assert 0 < figures["fitted_error"] <= figures["allowed_error"]


def test_what_quantization_uses_up_leaves_nothing_to_cache() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS, max_error=1e-5).quantize("int8", min_features=16).cache("svd-published")
    with pytest.raises(StackError, match=r"the passes below the cache are off by .*, 1e-05 was allowed"):
        stack.fit_gate(PROMPTS)
    with pytest.raises(StackError, match=r"max_error must be in \[0, 1\)"):
        Stack(tiny_pipe(), max_error=2.0)
