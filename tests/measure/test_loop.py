from __future__ import annotations

from typing import Any

import pytest

from stack.comparison.loop import Progress, measure
from stack.comparison.rows import plan_rows
from stack.core.errors import StackError

PLAN = plan_rows({"balanced": ("quantize", "sparse_attn", "cache")}, 50)
PROMPTS = ("a", "b", "c")
ALONE = ("quantize", "sparse_attn", "cache", "all-quantize", "all-sparse_attn", "all-cache")
ORDER = [
    "base", "all", "quantize", "sparse_attn", "cache", "all-quantize", "all-sparse_attn", "all-cache",
    "fewer-steps", "fewer-steps-multistep", *(f"fewer-steps@{name}" for name in ALONE),
]  # fmt: skip


def test_rows_are_interleaved_and_share_prompts_and_seeds(make_engine: Any) -> None:
    engine = make_engine()
    result = measure(engine, PLAN, PROMPTS, seed=7)
    assert engine.calls == [(name, prompt, 7 + i) for i, prompt in enumerate(PROMPTS) for name in ORDER]
    assert engine.warmed == ORDER
    assert {len(m.generations) for m in result.rows.values()} == {3}
    assert not result.partial


def test_controls_take_the_steps_that_fit_in_the_time_of_all(make_engine: Any) -> None:
    # all takes 1 s where 50 steps of the base take 10 s: 5 steps.
    result = measure(make_engine(), PLAN, PROMPTS, seed=0)
    assert result.rows["fewer-steps"].row.steps == 5
    assert result.rows["fewer-steps-multistep"].row.steps == 5
    assert list(result.rows)[-8:] == ["fewer-steps", "fewer-steps-multistep", *(f"fewer-steps@{n}" for n in ALONE)]


def test_every_row_has_the_control_of_its_own_time(make_engine: Any) -> None:
    rows = measure(make_engine(), PLAN, PROMPTS, seed=0).rows
    # Of 10 s for 50 steps: 8, 5, 2, 1.5, 1.8 and 4 s.
    assert [rows[f"fewer-steps@{name}"].row.steps for name in ALONE] == [40, 25, 10, 7, 9, 20]
    assert [rows[f"fewer-steps@{name}"].row.control_of for name in ALONE] == [*ALONE]
    assert "fewer-steps-multistep@cache" not in rows


def test_controls_of_as_many_steps_are_measured_once(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from . import conftest

    monkeypatch.setattr(conftest, "SECONDS", {**conftest.SECONDS, "cache": 1.0, "quantize": 10.5, "sparse_attn": 4.0})
    engine = make_engine()
    rows = measure(engine, PLAN, PROMPTS, seed=0).rows
    shared = {name: rows[f"fewer-steps@{name}"].row.same_as for name in ALONE}
    assert shared == {
        "quantize": "base", "sparse_attn": "", "cache": "fewer-steps", "all-quantize": "", "all-sparse_attn": "",
        "all-cache": "fewer-steps@sparse_attn",
    }  # fmt: skip
    assert not {f"fewer-steps@{name}" for name, other in shared.items() if other} & {name for name, *_ in engine.calls}


def test_a_peer_has_a_control_too(make_engine: Any) -> None:
    plan = plan_rows({"balanced": ("quantize", "cache")}, 50, peers=["diffusers first-block 0.1"])
    rows = measure(make_engine(), plan, PROMPTS, seed=0).rows
    assert rows["fewer-steps@diffusers first-block 0.1"].row.same_as == "base"  # the fake's peer is no faster


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
    assert "fewer-steps@sparse_attn" not in result.rows


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
    assert [p.total for p in told] == [48] * len(told)
    assert told[-1].done == 47
    assert told[0].seconds_left is None
    # The last picture is that of the control of all-cache: 20 steps of 0.2 s.
    assert told[-1].seconds_left == pytest.approx(4.0, rel=0.02)
    left = [p.seconds_left for p in told if p.seconds_left is not None]
    assert left[-1] < left[len(left) // 2] < left[0]
