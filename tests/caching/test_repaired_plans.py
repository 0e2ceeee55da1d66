"""What a cache is changed to on the stack it meets: exact options, from facts alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from stack.caching.bases import Bases
from stack.caching.cache import Cache
from stack.compat.noise import rounding_floor
from stack.core.facts import Facts
from stack.core.plan import make_plan

from ..test_plan import FACTS

FLOOR8, FLOOR4 = rounding_floor(8, 192), rounding_floor(4, 192)
INT8 = replace(FACTS, weight_bits=8, activation_bits=8)


def repaired(cache: Cache, facts: Facts) -> Cache:
    """The cache that will run."""
    (run,) = make_plan(facts, [cache]).passes()
    assert isinstance(run, Cache)
    return run


def partial_depth(steps: int, front: int, back: int, **more: Any) -> Cache:
    """The cache of a few-step schedule as it would be written by hand."""
    options: dict[str, Any] = {"site": "residual", "front": front, "back": back, "order": 1, "gains": (1.0, 1.0)}
    options |= {"interval": 2, "warmup": 1, "switches": (1 - 1 / steps,), "corrected": True}
    return Cache("svd", **(options | more))


@pytest.mark.parametrize("method", ["svd", "taylorseer", "first-block", "toca", "fora"])
@pytest.mark.parametrize(("blocks", "front", "back"), [(6, 2, 2), (9, 3, 3), (2, 1, 0), (3, 1, 1)])
def test_few_steps_run_a_third_of_the_blocks_on_either_side(method: str, blocks: int, front: int, back: int) -> None:
    facts = replace(FACTS, steps=8, blocks=blocks)
    assert repaired(Cache(method), facts).policy == partial_depth(8, front, back).policy


@pytest.mark.parametrize(
    ("changes", "corrected"),
    [
        ({"pipeline": True, "latent": (12, 12)}, True),
        ({"pipeline": False, "latent": (12, 12)}, False),
        ({"pipeline": True, "latent": (12, 24)}, False),
        ({"pipeline": True, "latent": (12, 12), "sampler": "noise is added on every step"}, False),
    ],
)
def test_few_steps_are_corrected_where_the_clean_sample_can_be_read(changes: dict[str, Any], corrected: bool) -> None:
    facts = replace(FACTS, steps=4, **changes)
    assert repaired(Cache("svd"), facts).policy == partial_depth(4, 2, 2, corrected=corrected).policy


def test_few_steps_keep_what_the_user_has_said_of_memory_and_noise() -> None:
    own: dict[str, Any] = {"state_dtype": "bfloat16", "max_bytes": 10**9, "noise": ((0.0, 0.01), (1.0, 0.02))}
    found = repaired(Cache("svd", **own), replace(FACTS, steps=8))
    assert found.policy == partial_depth(8, 2, 2, **own).policy


@pytest.mark.parametrize(("steps", "changed"), [(11, True), (12, False)])
def test_twelve_steps_are_enough_to_forecast_whole_ones(steps: int, changed: bool) -> None:
    cache = Cache("svd")
    assert (repaired(cache, replace(FACTS, steps=steps)) != cache) is changed


@pytest.mark.parametrize(
    ("method", "facts", "changes"),
    [
        ("svd", INT8, {"noise": ((0.0, FLOOR8), (1.0, FLOOR8))}),
        (
            "taylorseer",
            INT8,
            {"noise": ((0.0, FLOOR8), (1.0, FLOOR8)), "coordinate": "time", "basis": "newton"},
        ),
        ("hicache", INT8, {"noise": ((0.0, FLOOR8), (1.0, FLOOR8))}),  # its waves belong to steps
        (
            "taylorseer",
            replace(INT8, activation_bits=4),
            {"noise": ((0.0, FLOOR4), (1.0, FLOOR4)), "coordinate": "time", "basis": "newton", "order": 1},
        ),
        ("fora", INT8, {}),  # reuse differences nothing
        ("svd", replace(FACTS, weight_bits=4), {}),  # weights alone are rounded once
    ],
)
def test_forecasts_from_rounded_activations(method: str, facts: Facts, changes: dict[str, Any]) -> None:
    cache = Cache(method)
    assert repaired(cache, facts) == cache.changed(**changes)


def test_measured_noise_stays_and_chosen_gains_are_left_alone() -> None:
    measured = Cache("taylorseer", noise=((0.0, 0.01), (1.0, 0.02)))
    assert repaired(measured, INT8) == measured.changed(coordinate="time", basis="newton")
    chosen = Cache("svd", full_steps=(0, 5, 9, 20, 35), steps=50)
    assert repaired(chosen, INT8) == chosen


@pytest.mark.parametrize(("gap", "life"), [(0.5, "request"), (0.001, "warm")])
def test_a_basis_that_may_have_turned_is_refreshed(gap: float, life: str) -> None:
    """sin(theta) <= 2 (2 e sqrt(l) + e^2) / gap for the rounding error e of 8 bits: 0.06 and more than 1."""
    bases = Bases("flux", 6, 192, {"image": torch.eye(192)}, {"image": (0.9, gap)}, made_under=("weight_bits=16",))
    noise = 2 * FLOOR8 * 0.9**0.5 + FLOOR8**2
    assert bases.turned(FLOOR8) == pytest.approx(min(1.0, 2 * noise / gap))
    found = repaired(Cache("svd", bases=bases, noise=((0.0, FLOOR8), (1.0, FLOOR8))), INT8)
    assert found == Cache("svd", bases=bases, noise=((0.0, FLOOR8), (1.0, FLOOR8)), basis_life=life)
