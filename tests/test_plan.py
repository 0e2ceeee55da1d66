"""Plans are pure: no tensor is needed to test them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack import Stack
from stack.caching.cache import Cache
from stack.caching.sites.block_range import ResidualSite
from stack.core.errors import StackError
from stack.core.facts import Facts, Machine
from stack.core.passes import ORDER, Applied, Finding
from stack.core.plan import explain, in_order, make_plan

from .wirings import FLUX

FACTS = Facts(
    family="flux",
    denoiser_class="FluxTransformer2DModel",
    machine=Machine("cpu", "AVX2", fast_bf16=False),
    dtype="float32",
    blocks=6,
    width=192,
    heads=3,
    head_dim=64,
    image_tokens=1024,
    text_tokens=16,
    steps=50,
    wiring=FLUX,
)


@dataclass(frozen=True)
class Fake:
    """A pass that only counts itself in the facts."""

    stage: str
    finding: Finding | None = None

    def describe(self, facts: Facts) -> list[str]:
        return [f"fake {self.stage} after {len(facts.adapters)}"]

    def check(self, facts: Facts) -> list[Finding]:
        return [self.finding] if self.finding else []

    def facts_after(self, facts: Facts) -> Facts:
        return replace(facts, adapters=(*facts.adapters, self.stage))

    def apply(self, target: object, install: object) -> Applied:
        raise AssertionError("planning must not apply")


@given(st.permutations(ORDER), st.integers(0, 5))
def test_any_calling_order_gives_the_same_plan(order: list[str], count: int) -> None:
    asked = order[:count]
    plan = make_plan(FACTS, [Fake(stage) for stage in asked])
    assert [p.stage for p in plan.passes()] == [stage for stage in ORDER if stage in asked]
    assert plan.facts_after.adapters == tuple(stage for stage in ORDER if stage in asked)


def test_each_pass_sees_the_facts_of_those_below() -> None:
    plan = make_plan(FACTS, [Fake("cache"), Fake("quantize"), Fake("distill")])
    assert [s.before.adapters for s in plan.stages] == [(), ("distill",), ("distill", "quantize")]


@pytest.mark.parametrize("stage", ORDER)
def test_a_stage_given_twice_is_refused(stage: str) -> None:
    with pytest.raises(StackError, match=f"'{stage}' is given 2 times"):
        in_order([Fake(stage), Fake(stage)])


def test_all_refusals_come_at_once() -> None:
    bad = [Fake(s, Finding(s, f"{s} cannot", fatal=True)) for s in ("quantize", "cache")]
    with pytest.raises(StackError, match=r"quantize: quantize cannot; cache: cache cannot"):
        make_plan(FACTS, bad)


def test_a_repair_replaces_or_drops_and_strict_raises() -> None:
    other = Fake("quantize")
    swap = Fake("quantize", Finding("quantize", "clash", "why", repair="swap", replacement=other))
    drop = Fake("cache", Finding("cache", "useless", repair="drop"))
    plan = make_plan(FACTS, [swap, drop])
    assert plan.passes() == (other,)
    assert "[repaired] quantize: clash (why); done: swap" in explain(plan)
    with pytest.raises(StackError, match="useless"):
        make_plan(FACTS, [drop], strict=True)


def test_a_repair_adds_a_later_pass_unless_its_stage_is_there() -> None:
    new, none = Fake("compile"), Fake("compile", Finding("compile", "left out", note=True))
    finding = Finding("quantize", "slow", "why", repair="compile is added", adds=new, instead=none)
    needy = Fake("quantize", finding)
    plan = make_plan(FACTS, [Fake("cache"), needy])
    assert [p.stage for p in plan.passes()] == ["quantize", "compile", "cache"] and plan.passes()[1] is new
    assert plan.added == {"compile": none} and plan.stages[1].before.adapters == ("quantize",)
    assert plan.facts_after.adapters == ("quantize", "compile", "cache")
    assert "[repaired] quantize: slow (why); done: compile is added" in explain(plan)
    with pytest.raises(StackError, match="quantize: slow"):
        make_plan(FACTS, [needy], strict=True)
    for asked in (none, new):
        plan = make_plan(FACTS, [needy, asked], strict=True)
        assert plan.passes() == (needy, asked) and not plan.added
        assert [f.what for f in plan.findings] == (["left out"] if asked is none else [])


def test_two_that_need_the_same_pass_get_one() -> None:
    needy = [Fake(s, Finding(s, "slow", repair="added", adds=Fake("compile"))) for s in ("distill", "quantize")]
    plan = make_plan(FACTS, needy)
    assert [p.stage for p in plan.passes()] == ["distill", "quantize", "compile"]
    assert [f.stage for f in plan.findings] == ["distill"]


def test_notes_never_raise_even_when_strict() -> None:
    noted = Fake("cache", Finding("cache", "by the way", note=True))
    assert make_plan(FACTS, [noted], strict=True).passes() == (noted,)


@pytest.mark.parametrize(("steps", "kept"), [(4, False), (8, False), (11, False), (12, True), (50, True)])
def test_few_step_schedules_get_partial_depth_where_no_corrector_is_possible(steps: int, kept: bool) -> None:
    plan = make_plan(replace(FACTS, steps=steps, pipeline=False), [Cache()])
    (cache,) = plan.passes()
    assert isinstance(cache, Cache)
    if kept:
        assert cache == Cache() and all(finding.note for finding in plan.findings)
    else:
        third = round(FACTS.blocks / 3)
        assert cache.policy.site == ResidualSite(third, third)
        full = -(-steps // 2)
        assert (
            f"can save at most {steps / (full + (steps - full) * 2 * third / FACTS.blocks):.2f}x"
            in plan.findings[0].what
        )


@pytest.mark.parametrize(("steps", "full"), [(4, 3), (8, 5), (11, 7)])
def test_few_step_schedules_run_three_steps_in_five_in_full_behind_a_corrector(steps: int, full: int) -> None:
    plan = make_plan(replace(FACTS, steps=steps), [Cache()])
    (cache,) = plan.passes()
    assert isinstance(cache, Cache) and cache.policy.site == Cache().policy.site and cache.policy.corrected
    assert len(cache.policy.full_steps(replace(FACTS, steps=steps))) == full
    assert f"can save at most {steps / full:.2f}x" in plan.findings[0].what


def test_explain_prints_the_bytes_of_state() -> None:
    # Feature and direction, 1,024 tokens x 192 x 4 bytes each, and a basis of at most 192 x 192.
    words = f"{2 * 1024 * 192 * 4 / 1e6:.1f} MB of state and at most {192 * 192 * 4 / 1e6:.1f} MB of bases"
    assert words in explain(make_plan(FACTS, [Cache("svd-published")]))


def test_explain_numbers_stages_in_running_order() -> None:
    stages = itertools.permutations([Fake("cache"), Fake("distill"), Fake("sparse_attn")])
    texts = {explain(make_plan(FACTS, list(order))) for order in stages}
    assert len(texts) == 1
    assert [line[:2] for line in texts.pop().splitlines()[2:]] == ["1.", "2.", "3."]


@pytest.mark.parametrize("new", [3, "svd", None, Cache])
def test_what_is_no_pass_is_refused(new: Any, denoiser: Any) -> None:
    for stack in (Stack(denoiser, steps=14), Stack(denoiser, steps=14).cache("svd")):
        for method in (stack.add, stack.replace):
            with pytest.raises(StackError, match="expected a pass, one object with its options, got"):
                method(new)
