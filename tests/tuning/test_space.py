"""What is tried on a model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from stack import Stack, StackError
from stack.core.plan import Plan
from stack.recipe import Recipe
from stack.tuning.space import KEEPS, Space, Stages, space_of

from ..conftest import tiny_pipe

STEPS = 20


def planning(pipe: Any, steps: int = STEPS) -> Any:
    def plan(stages: Stages) -> Plan:
        return Stack.from_recipe(Recipe("one", steps=steps, stages=stages), pipe, steps=steps).plan

    return plan


def whole(fixed: dict[str, Any] | None = None) -> Space:
    return Space(STEPS, ("int8",), True, ("predictor-corrector", "svd"), True, fixed or {})


def test_what_the_plan_drops_is_not_tried() -> None:
    """On a CPU there is no fp8 arithmetic, and 64 tokens are too few for sparse attention."""
    space = space_of(planning(tiny_pipe()), STEPS, {})
    assert space.schemes == ("int8",) and not space.sparse and space.solver
    assert space.methods == ("predictor-corrector", "svd", "taylorseer")
    assert space_of(planning(tiny_pipe()), STEPS, {}, small=True).schemes == ("int8", "int8-weight", "nf4")


def test_stages_that_are_fixed_are_in_every_candidate_and_not_tried() -> None:
    fixed = {"quantize": {"scheme": "nf4"}}
    space = space_of(planning(tiny_pipe()), STEPS, fixed)
    assert space.schemes == ()
    trial = optuna.trial.FixedTrial({"skip": "cache", "cache": "svd", "count": 4})
    assert space.choose(trial) == {**fixed, "cache": {"method": "svd", "count": 4}}


@pytest.mark.parametrize(
    ("chosen", "stages"),
    [
        ({"quantize": "off", "sparse_attn": "off", "skip": "off"}, {}),
        (
            {"quantize": "int8", "sparse_attn": "on", "keep": 0.3, "skip": "solver", "solver_steps": 6},
            {"quantize": {"scheme": "int8"}, "sparse_attn": {"keep": 0.3}, "solver": {"steps": 6}},
        ),
    ],
)
def test_a_trial_becomes_stages(chosen: dict[str, Any], stages: Stages) -> None:
    assert whole().choose(optuna.trial.FixedTrial(chosen)) == stages


def test_the_first_candidates_are_ones_that_can_be_chosen() -> None:
    first = whole().first()
    made = [whole().choose(optuna.trial.FixedTrial(one)) for one in first]
    assert len(made) == 12 and all(made.count(one) == 1 for one in made)
    assert {"cache": {"method": "predictor-corrector", "count": 2}} in made
    assert KEEPS[0] > 0 and KEEPS[1] < 1


def test_with_few_steps_there_is_always_something_left_out() -> None:
    assert [Space(n, (), False, ("svd",), False, {}).most_full for n in (4, 5, 8, 50)] == [2, 2, 4, 25]


def test_a_model_on_which_nothing_works_has_no_space() -> None:
    def refuse(stages: Stages) -> Plan:
        raise StackError("nothing works")

    space = space_of(refuse, STEPS, {})
    assert (space.schemes, space.sparse, space.methods, space.solver) == ((), False, (), False)


def test_a_faster_exact_kernel_is_in_every_candidate() -> None:
    def keeping(stages: Stages) -> Any:
        return SimpleNamespace(passes=lambda: [SimpleNamespace(stage=stage) for stage in stages])

    space = space_of(keeping, STEPS, {})
    assert space.fixed == {"dense_attn": {}} and space.sparse
    assert space_of(keeping, STEPS, {"dense_attn": {"backend": "torch"}}).fixed == {"dense_attn": {"backend": "torch"}}
