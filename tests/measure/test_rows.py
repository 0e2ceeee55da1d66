from __future__ import annotations

import pytest

from stack.comparison.rows import controls_of, is_multistep, plan_rows, share, uncached_partner, whole_stacks
from stack.core.errors import StackError

THREE = {"balanced": ("quantize", "sparse_attn", "cache")}


def test_one_recipe_is_taken_apart() -> None:
    rows = plan_rows(THREE, 50)
    assert [row.name for row in rows] == [
        "base", "quantize", "sparse_attn", "cache", "all", "all-quantize", "all-sparse_attn", "all-cache",
    ]  # fmt: skip
    assert {row.name: row.passes for row in rows}["all-sparse_attn"] == ("quantize", "cache")


def shared(stages: tuple[str, ...], dropped: str = "") -> dict[str, str]:
    rows = share(plan_rows({"r": stages}, 50), lambda row: tuple(p for p in row.passes if p != dropped))
    return {row.name: row.same_as for row in rows}


def test_rows_with_the_same_passes_are_measured_once() -> None:
    assert shared(("quantize", "cache")) == {
        "base": "", "quantize": "", "cache": "", "all": "", "all-quantize": "cache", "all-cache": "quantize",
    }  # fmt: skip
    assert shared(("cache",)) == {"base": "", "cache": "all", "all": "", "all-cache": "base"}
    assert not any(shared(("quantize", "sparse_attn", "cache")).values())


def test_a_pass_that_the_plan_drops_is_not_measured() -> None:
    assert shared(("quantize", "sparse_attn", "cache"), dropped="sparse_attn") == {
        "base": "", "quantize": "", "sparse_attn": "base", "cache": "", "all": "", "all-quantize": "cache",
        "all-sparse_attn": "all", "all-cache": "quantize",
    }  # fmt: skip
    # A whole stack is measured even where nothing of it is left.
    assert shared(("cache",), dropped="cache") == {"base": "", "cache": "base", "all": "", "all-cache": "base"}


def test_several_recipes_are_compared_as_wholes() -> None:
    rows = plan_rows({"balanced": ("quantize", "cache"), "fast": ("cache",)}, 50)
    assert [(row.name, row.passes) for row in rows] == [
        ("base", ()), ("balanced", ("quantize", "cache")), ("fast", ("cache",)),
    ]  # fmt: skip
    assert [row.name for row in whole_stacks(rows)] == ["balanced", "fast"]
    with pytest.raises(StackError, match="cannot be named 'base'"):
        plan_rows({"base": ("cache",), "fast": ("cache",)}, 50)


def test_peers_are_measured_themselves_though_they_have_no_passes() -> None:
    rows = share(plan_rows({"r": ("cache",)}, 50, peers=["theirs", "theirs too"]), lambda row: row.passes)
    assert [(row.name, row.same_as) for row in rows if row.role == "peer"] == [("theirs", ""), ("theirs too", "")]


def test_pairs_are_rows_of_their_own_where_no_other_row_has_them() -> None:
    assert plan_rows(THREE, 50, pairs=True) == plan_rows(THREE, 50)
    four = plan_rows({"r": ("distill", "quantize", "sparse_attn", "cache")}, 50, pairs=True)
    assert [row.name for row in four if row.group == "pair"] == [
        "distill+quantize", "distill+sparse_attn", "distill+cache", "quantize+sparse_attn", "quantize+cache",
        "sparse_attn+cache",
    ]  # fmt: skip
    assert not [row for row in plan_rows({"r": ("distill", "quantize", "sparse_attn", "cache")}, 50) if "+" in row.name]


def test_a_stage_named_like_its_recipe_is_no_whole_stack() -> None:
    assert [row.name for row in whole_stacks(plan_rows({"cache": ("quantize", "cache")}, 50))] == ["all"]


def test_controls_carry_their_stack_and_their_steps() -> None:
    (stack,) = whole_stacks(plan_rows(THREE, 50))
    euler, multistep = controls_of(stack, 9, single=True)
    assert (euler.name, euler.steps, is_multistep(euler.name)) == ("fewer-steps", 9, False)
    assert (multistep.name, multistep.steps, is_multistep(multistep.name)) == ("fewer-steps-multistep", 9, True)
    fast = plan_rows({"balanced": ("cache",), "fast": ("cache",)}, 50)[2]
    names = [row.name for row in controls_of(fast, 7, single=False)]
    assert names == ["fewer-steps@fast", "fewer-steps-multistep@fast"]
    assert is_multistep(controls_of(fast, 7, single=False)[1].name)
    assert len(controls_of(stack, 9, single=True, multistep=False)) == 1
    (alone,) = controls_of(plan_rows(THREE, 50)[1], 30, single=True)  # no second-order control: it is for whole stacks
    assert (alone.name, alone.steps, alone.control_of) == ("fewer-steps@quantize", 30, "quantize")


def test_the_cache_is_measured_against_the_same_passes_without_it() -> None:
    rows = plan_rows(THREE, 50)
    partners = {row.name: uncached_partner(row, rows) for row in rows}
    assert {name: partner and partner.name for name, partner in partners.items()} == {
        "base": None, "quantize": None, "sparse_attn": None, "cache": "base", "all": "all-cache",
        "all-quantize": "sparse_attn", "all-sparse_attn": "quantize", "all-cache": None,
    }  # fmt: skip


def test_the_partner_of_a_cache_may_be_measured_under_another_name() -> None:
    rows = share(plan_rows(THREE, 50), lambda row: tuple(p for p in row.passes if p != "sparse_attn"))
    partners = {row.name: uncached_partner(row, rows) for row in rows}
    assert partners["all"] == rows[1] and rows[1].name == "quantize"
    assert partners["all-quantize"] == rows[0]
