"""What a cache that runs has to say of the stack below it: which rules, with which numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stack.caching.cache import Cache
from stack.caching.clashes import noise_gain
from stack.compat.calibrated_for import conditions
from stack.core.facts import Facts, Machine
from stack.core.passes import Finding

from ..test_plan import FACTS

INT8 = replace(FACTS, weight_bits=8, activation_bits=8)
CUDA = replace(FACTS, machine=Machine("cuda"))


def found(cache: Cache, facts: Facts) -> dict[str, Finding]:
    """Findings by rule."""
    return {finding.rule: finding for finding in cache.check(facts)}


@pytest.mark.parametrize(
    ("method", "facts", "rule", "what"),
    [
        ("first-block", INT8, "gate-threshold", "threshold 0.08 of gate 'prefix' is not of this stack"),
        ("first-block", CUDA, "gate-reads-device", "gate 'prefix' waits for the device on 50 steps"),
        ("pab-published", replace(FACTS, attention_density=0.5), "attention-cached-and-sparse", "saves at most 1.25x"),
        ("svd-published", replace(FACTS, attention_density=0.4), "sparse-under-cache", "full steps attend to 40%"),
        ("svd-published", replace(FACTS, distilled="few"), "distilled-trajectory", "trajectory of few"),
        ("taylorseer-published", FACTS, "even-steps", "9 of 50 steps full"),
    ],
)
def test_a_note_with_its_number(method: str, facts: Facts, rule: str, what: str) -> None:
    finding = found(Cache(method), facts)[rule]
    assert what in finding.what and finding.note and not finding.fatal


def test_attention_that_is_left_bounds_what_caching_it_saves() -> None:
    """Attention is a third; with 50 % of it left, a sixth of five sixths: 1 / (1 - 1 / 5) = 1.25."""
    said = found(Cache("pab-published"), replace(FACTS, attention_density=0.5))["attention-cached-and-sparse"]
    assert said.what == "sparse attention has left 50% of attention: caching it saves at most 1.25x"
    assert "attention-cached-and-sparse" not in found(Cache("pab-published"), FACTS)
    assert "attention-cached-and-sparse" not in found(Cache("svd-published"), replace(FACTS, attention_density=0.5))


@pytest.mark.parametrize(
    ("compiled", "device", "refused"),
    [("reduce-overhead", "cuda", True), ("max-autotune", "cuda", True), ("default", "cuda", False),
     ("max-autotune-no-cudagraphs", "cuda", False), ("reduce-overhead", "cpu", False), ("", "cuda", False)],
)  # fmt: skip
def test_recorded_graphs_are_refused(compiled: str, device: str, refused: bool) -> None:
    facts = replace(FACTS, machine=Machine(device), compiled=compiled)
    findings = found(Cache("svd-published"), facts)
    assert ("cuda-graphs" in findings) is refused
    assert not refused or findings["cuda-graphs"].fatal


@pytest.mark.parametrize(
    ("options", "rules"),
    [
        ({"full_steps": (0, 1, 9, 20, 35), "steps": 50}, {"narrow-gaps"}),
        ({"full_steps": tuple(range(0, 50, 5)), "steps": 50, "order": 2}, {"high-order"}),
        ({"full_steps": tuple(range(0, 50, 5)), "steps": 50}, set()),
        ({"full_steps": (0, 1, 9), "steps": 50, "order": 0, "gains": (0.0, 0.0)}, set()),
        ({"full_steps": (0, 1, 9, 20, 35), "steps": 50, "order": 2, "noise": ((0.0, 0.01), (1.0, 0.01))}, set()),
    ],
)
def test_differences_of_rounded_features(options: dict[str, Any], rules: set[str]) -> None:
    assert {*found(Cache("svd-published", **options), INT8)} & {"narrow-gaps", "high-order"} == rules
    assert not {*found(Cache("svd-published", **options), FACTS)} & {"narrow-gaps", "high-order"}


def test_narrow_gaps_are_said_with_their_gain() -> None:
    """Full steps 0 and 1, the last cached step 8: weights 8 and -7."""
    options: dict[str, Any] = {"full_steps": (0, 1, 9, 20, 35), "steps": 50}
    assert noise_gain(options["full_steps"], 50) == pytest.approx((8**2 + 7**2) ** 0.5)
    said = found(Cache("svd-published", **options), INT8)["narrow-gaps"].what
    assert said == "this schedule's first differences gain 10.6 times the noise of a step"


def test_what_was_fitted_elsewhere_is_said_with_the_difference() -> None:
    fitted = Cache("teacache", coefficients=(1.0, 0.0), calibrated_for=conditions(FACTS))
    assert "fitted-elsewhere" not in found(fitted, FACTS)
    said = found(fitted, replace(FACTS, weight_bits=4))["fitted-elsewhere"].what
    assert said == "the polynomial gate fitted under other conditions: weight_bits 16, now 4"


def test_a_cache_calibrated_on_this_very_stack_has_nothing_to_be_told() -> None:
    facts = replace(INT8, attention_density=0.5, distilled="few")
    own = Cache("svd-published", full_steps=(0, 1, 9), steps=50, calibrated_for=conditions(facts))
    assert own.check(facts) == []
    assert {*found(own.changed(calibrated_for=()), facts)} >= {"narrow-gaps", "sparse-under-cache"}
