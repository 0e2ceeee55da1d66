"""Adaptive decisions: the published rules, on numbers alone; and what is fitted for them."""

from __future__ import annotations

import pytest
import torch

from stack import Stack, StackError
from stack.caching.gates import DraftGate, Gate, MagnitudeGate, PolynomialGate, PrefixGate, SumGate
from stack.calibration.gate_fit import output_polynomial, residual_ratios
from stack.calibration.trajectory import Trajectory
from stack.runtime.step import StepContext

from ..conftest import picture, tiny_pipe


def pattern(gate: Gate, changes: list[float | None]) -> str:
    """F and . of a run with these changes."""
    marks, run = "", 0
    for step, change in enumerate(changes):
        skip = gate.skip(step, len(changes), change, run)
        run = run + 1 if skip else 0
        marks += "." if skip else "F"
    return marks


def test_prefix_gate_compares_with_its_threshold_after_the_warm_up() -> None:
    assert pattern(PrefixGate(0.1, warmup=2), [None, 0.01, 0.01, 0.2, 0.09, 0.1]) == "FF.F.F"
    assert pattern(PrefixGate(0.1, warmup=1, longest=2), [None, *[0.01] * 6]) == "F..F..F"


def test_teacache_sums_the_polynomial_until_the_threshold() -> None:
    """2 d per step, threshold 0.5: 0.2 and 0.4 are skipped, 0.6 is not; first and last step always run."""
    assert pattern(PolynomialGate(0.5, (2.0, 0.0)), [None, *[0.1] * 6, 0.0]) == "F..F..FF"


def test_magcache_multiplies_ratios_and_sums_their_distance_from_one() -> None:
    gate = MagnitudeGate(0.07, (1.0, *[0.98] * 9), longest=9, retention=0.2)
    # |1 - .98| + |1 - .98^2| = 0.0596, and with the third 0.118.
    assert pattern(gate, [None] * 10) == "FF..F..F.."
    short = MagnitudeGate(9.0, (1.0, *[0.98] * 9), longest=3, retention=0.2)
    assert pattern(short, [None] * 10) == "FF...F...F"


def test_magcache_reads_another_number_of_steps_from_the_nearest_entry() -> None:
    gate = MagnitudeGate(0.05, (1.0, 1.0, 0.5, 1.0, 1.0), longest=99, retention=0.1)
    assert pattern(gate, [None] * 9) == "F..FFF..."


def test_drafts_follow_the_warm_up() -> None:
    assert pattern(DraftGate(warmup=3, longest=2), [None] * 9) == "FFF..F..F"


def test_a_gate_without_its_measurement_says_what_to_call() -> None:
    with pytest.raises(StackError, match="fit_gate"):
        MagnitudeGate(0.1, ()).skip(20, 50, None, 0)
    with pytest.raises(StackError, match="fit_gate"):
        Stack(tiny_pipe()).cache("magcache").apply()


def growing(rate: float, steps: int = 5) -> Trajectory:
    start = torch.rand(2, 6, 4) + 0.5
    powers = [rate**s for s in range(steps)]
    nothing = [torch.zeros_like(start)] * steps
    contexts = [StepContext(0, "", step, steps, 0.5, 0.5, (2, 6, 4)) for step in range(steps)]
    features, modulated = ([p * start for p in powers] for _ in range(2))
    return Trajectory(features=features, contexts=contexts, inputs=nothing, modulated=modulated)


def test_ratios_of_a_residual_that_shrinks_by_a_tenth() -> None:
    assert residual_ratios(growing(0.9), 1) == pytest.approx((1.0, 0.9, 0.9, 0.9, 0.9))


def test_the_polynomial_gives_back_the_changes_it_was_fitted_to() -> None:
    torch.manual_seed(0)
    both = [growing(rate) for rate in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)]
    joined = Trajectory()
    for trajectory in both:
        for name in ("features", "contexts", "inputs", "modulated"):
            getattr(joined, name).extend(getattr(trajectory, name))
    fitted = output_polynomial(joined, len(both))
    for change in (0.1, 0.3, 0.55):
        assert sum(c * change ** (4 - i) for i, c in enumerate(fitted)) == pytest.approx(change, abs=1e-4)


@pytest.mark.parametrize(("method", "field"), [("magcache", "ratios"), ("teacache", "coefficients")])
def test_fitting_fills_the_cache_and_leaves_the_model_as_it_was(method: str, field: str) -> None:
    pipe = tiny_pipe()
    before = picture(pipe, 14)
    stack = Stack(pipe, steps=14).cache(method).fit_gate(["a red ring", "a green circle"])
    assert not stack.applied and torch.equal(picture(pipe, 14), before)
    assert len(stack.passes[0].policy.options()[field]) == (14 if method == "magcache" else 5)
    assert "rule gate-threshold" not in stack.explain() and "rule fitted-elsewhere" not in stack.explain()
    rounded = stack.quantize("int8", min_features=64).explain()
    assert (
        f"the {stack.passes[1].policy.gate.name} gate fitted under other conditions: weight_bits 32, now 8" in rounded
    )
    stack.undo("quantize")
    picture(stack, 14)
    assert {step.kind for step in stack.report().steps} >= {"full"}
    with pytest.raises(StackError, match="expected a pipeline with"):
        Stack(pipe).cache("svd").fit_gate(["a red ring"])


def test_a_sum_needs_its_slope_and_ends_where_it_is_told_to() -> None:
    """0.5 d per step, threshold 0.2: 0.1 is skipped, 0.2 is not."""
    known = SumGate(0.2, warmup=2, slope=0.5)
    assert pattern(known, [None, *[0.2] * 6]) == "FF.F.F."
    assert pattern(SumGate(0.2, warmup=2, slope=0.5, ends=True), [None, *[0.2] * 5, 0.0]) == "FF.F.FF"
    unknown = SumGate(0.2, warmup=2, slope=None)
    assert pattern(unknown, [None, *[0.0] * 4]) == "FFFFF"
    unknown.ran(0.5)
    assert pattern(unknown, [None, *[0.2] * 4]) == "FF.F."
    unknown.ran()
    assert (unknown.total, unknown.slope) == (0.0, 0.5)
