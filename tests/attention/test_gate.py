"""Decisions that follow from numbers: which steps and shapes are sparse, and how calls are counted."""

from __future__ import annotations

import pytest
import torch

from stack.attention.cost import CPU
from stack.attention.sparsity import FIRST, LAST, OUTSIDE, SparsityPolicy
from stack.attention.tally import Tally
from stack.models.schedule import uniform

from ..clocks import advance, clock_of


def reasons(policy: SparsityPolicy, steps: int) -> list[str]:
    clock = clock_of(uniform(steps))
    return [policy.dense_step(advance(clock, sigma, (1, 4, 4))) for sigma in clock.timetable.schedule.sigmas]


def test_dense_at_both_ends() -> None:
    assert reasons(SparsityPolicy(0.5), 20) == [FIRST] * 2 + [""] * 17 + [LAST]
    assert reasons(SparsityPolicy(0.5, first=3, last=2), 8) == [FIRST] * 3 + [""] * 3 + [LAST] * 2
    assert reasons(SparsityPolicy(0.5, last=0), 4) == [FIRST, "", "", ""]
    assert SparsityPolicy(0.5).dense_step(None) == OUTSIDE


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 28, 50])
def test_the_count_of_sparse_steps_is_what_will_happen(steps: int) -> None:
    for policy in (SparsityPolicy(0.5), SparsityPolicy(0.5, first=3, last=2), SparsityPolicy(0.5, last=0)):
        assert policy.sparse_steps(steps) == reasons(policy, steps).count("")
        assert policy.first_steps(steps) >= 1


def test_shapes_that_do_not_pay_stay_dense_unless_told() -> None:
    assert SparsityPolicy(0.5).dense_shape(4096, 16, CPU) == ""
    assert "density" in SparsityPolicy(0.75).dense_shape(1024, 16, CPU)
    assert SparsityPolicy(0.75, even_if_slower=True).dense_shape(1024, 16, CPU) == ""


def test_where_nothing_can_be_dropped_nothing_is_even_if_told() -> None:
    told = SparsityPolicy(0.5, even_if_slower=True)
    assert "none of which would be dropped" in told.dense_shape(64, 16, CPU)
    assert "none of which" in told.dense_shape(20, 16, CPU)
    assert SparsityPolicy(1.0, even_if_slower=True).dense_shape(4096, 16, CPU) == "keep 1 keeps every block"


def test_tally_counts_one_request() -> None:
    clock = clock_of(uniform(4))
    tally = Tally(clock)
    for sigma in (1.0, 0.75):
        advance(clock, sigma, (1, 4, 4))
        tally.note(FIRST if sigma == 1.0 else "", density=1.0 if sigma == 1.0 else 0.5)
        tally.note("", density=0.25)
    assert tally.figures().items() >= {"sparse_calls": 3, "dense_calls": {FIRST: 1}, "density": 0.5}.items()
    advance(clock, 1.0, (1, 4, 4))  # the next request
    tally.note(LAST)
    assert tally.figures().items() >= {"sparse_calls": 0, "dense_calls": {LAST: 1}, "density": 1.0}.items()
    tally.reset()
    assert tally.figures().items() >= {"sparse_calls": 0, "dense_calls": {}, "density": None}.items()


def test_tally_has_a_list_per_layer_over_the_steps() -> None:
    """Two calls of a layer in one step are averaged; a step without a call of it has None."""
    clock = clock_of(uniform(4))
    tally = Tally(clock)
    advance(clock, 1.0, (1, 4, 4))
    tally.note(FIRST, "a", dropped=0.0)
    advance(clock, 0.75, (1, 4, 4))
    tally.note("", "a", kept=torch.tensor(0.5), dropped=torch.tensor(0.25), error=torch.tensor(0.125))
    tally.note("", "a", kept=0.25, dropped=0.75, error=0.375)
    tally.note("", "b", kept=0.5)
    figures = tally.figures()
    assert figures["by_layer"] == {
        "a": {"kept": [1.0, 0.375], "dropped_mass": [0.0, 0.5]},
        "b": {"kept": [None, 0.5], "dropped_mass": [None, None]},
    }
    assert (figures["dropped_mass"], figures["output_error"], figures["error_bound"]) == (0.5, 0.25, 1.0)
