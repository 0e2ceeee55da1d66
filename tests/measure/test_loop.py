from __future__ import annotations

from typing import Any

import pytest

from stack.compare.loop import Progress, measure
from stack.compare.rows import plan_rows
from stack.core.errors import StackError

PLAN = plan_rows({"balanced": ("quantize", "sparse_attn", "cache")}, 50)
PROMPTS = ("a", "b", "c")
ORDER = [
    "base", "all", "quantize", "sparse_attn", "cache", "all-quantize", "all-sparse_attn", "all-cache",
    "fewer-steps", "fewer-steps-multistep",
]  # fmt: skip


def test_rows_are_interleaved_and_share_prompts_and_seeds(make_engine: Any) -> None:
    engine = make_engine()
    result = measure(engine, PLAN, PROMPTS, seed=7)
    assert engine.calls == [(name, prompt, 7 + i) for i, prompt in enumerate(PROMPTS) for name in ORDER]
    assert engine.warmed == [*ORDER[:8], *ORDER[8:]]
    assert {len(m.generations) for m in result.rows.values()} == {3}
    assert not result.partial


def test_controls_take_the_steps_that_fit_in_the_time_of_all(make_engine: Any) -> None:
    # all takes 1 s where 50 steps of the base take 10 s: 5 steps.
    result = measure(make_engine(), PLAN, PROMPTS, seed=0)
    assert result.rows["fewer-steps"].row.steps == 5
    assert result.rows["fewer-steps-multistep"].row.steps == 5
    assert list(result.rows)[-2:] == ["fewer-steps", "fewer-steps-multistep"]


def test_controls_take_no_fewer_steps_than_the_stack_ran_in_full(make_engine: Any) -> None:
    engine = make_engine()
    make = engine.generate

    def full(row: Any, prompt: str, seed: int) -> Any:
        made = make(row, prompt, seed)
        made.kinds = ("full",) * 12 + ("cached",) * 38
        return made

    engine.generate = full
    result = measure(engine, PLAN, PROMPTS, seed=0)
    assert result.rows["fewer-steps"].row.steps == 12


def test_every_recipe_gets_its_own_controls(make_engine: Any) -> None:
    plan = plan_rows({"balanced": ("quantize", "cache"), "fast": ("cache",)}, 50)
    names = list(measure(make_engine(), plan, PROMPTS, seed=0).rows)
    assert names == [
        "base", "balanced", "fast", "fewer-steps@balanced", "fewer-steps-multistep@balanced", "fewer-steps@fast",
        "fewer-steps-multistep@fast",
    ]  # fmt: skip


def test_without_a_flow_scheduler_there_is_one_control(make_engine: Any) -> None:
    result = measure(make_engine(multistep=False), PLAN, PROMPTS, seed=0)
    assert "fewer-steps" in result.rows and "fewer-steps-multistep" not in result.rows


@pytest.mark.parametrize("done", [0, 1, 2, 13])
def test_an_interruption_keeps_what_was_measured(make_engine: Any, done: int) -> None:
    result = measure(make_engine(stop_after=done), PLAN, PROMPTS, seed=0)
    assert result.partial
    assert sum(len(m.generations) for m in result.rows.values()) == done
    assert ("fewer-steps" in result.rows) == (done >= 2)


def test_a_failing_row_is_dropped_and_says_so(make_engine: Any) -> None:
    result = measure(make_engine(failing="sparse_attn"), PLAN, PROMPTS, seed=0)
    assert result.rows["sparse_attn"].warnings == ["failed: RuntimeError: out of memory"]
    assert result.rows["sparse_attn"].generations == []
    assert {len(m.generations) for name, m in result.rows.items() if name != "sparse_attn"} == {3}


def test_a_control_that_the_pipeline_refuses_is_dropped_and_says_so(make_engine: Any) -> None:
    engine = make_engine(failing="fewer-steps-multistep", error=StackError("refused: no such argument"))
    result = measure(engine, PLAN, PROMPTS, seed=0)
    assert result.rows["fewer-steps-multistep"].warnings == ["failed: StackError: refused: no such argument"]
    assert len(result.rows["fewer-steps"].generations) == 3


def test_a_failing_base_ends_the_comparison(make_engine: Any) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        measure(make_engine(failing="base"), PLAN, PROMPTS, seed=0)


def test_progress_counts_to_the_end_and_estimates_the_rest(make_engine: Any) -> None:
    told: list[Progress] = []
    measure(make_engine(), PLAN, PROMPTS, seed=0, tell=told.append)
    assert [p.total for p in told] == [30] * len(told)
    assert told[-1].done == 29
    assert told[0].seconds_left is None
    # The last picture is the multistep control's: 5 steps of 0.2 s.
    assert told[-1].seconds_left == pytest.approx(1.0, rel=0.02)
    left = [p.seconds_left for p in told if p.seconds_left is not None]
    assert left[-1] < left[len(left) // 2] < left[0]
