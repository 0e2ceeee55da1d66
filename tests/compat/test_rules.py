"""Every rule speaks when its clash is there, with its number; the page is what the rules say."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stack import bounds
from stack.caching.cache import Cache
from stack.caching.clashes import noise_gain, records_graphs
from stack.caching.schedules import Interval
from stack.cli import main
from stack.compat.calibrated_for import conditions
from stack.compat.rules import RULES, SUBJECTS, rule_named
from stack.compat.rules.page import page
from stack.core.errors import StackError
from stack.core.plan import make_plan
from stack.distill.adapter import Adapter
from stack.distill.distill import Distill
from stack.distill.find import cards_in, shipped_folder
from stack.models.preexisting import FUSED, LORA, OFFLOADED
from stack.quant.quantize import Quantize

from ..test_plan import FACTS
from .occurring import OCCURRING
from .planned import CALIBRATED, EIGHT, PLANNED, SPARSE, told

PAGE = Path(__file__).parents[2] / "docs" / "composability.md"
CAUSED_BY_THE_PASS = {"missing-scheduler", "another-model", "rounded-elsewhere", "fewer-tokens", "even-steps"}
COUNTED = {"masked-attention"}  # a count by reason, where the rule's name has to do


def test_every_rule_has_a_trigger_and_every_trigger_a_rule() -> None:
    assert {*PLANNED, *OCCURRING} == {*RULES}
    assert all(RULES[name].when in ("plan", "run") for name in PLANNED)
    assert {name for name, rule in RULES.items() if rule.when != "plan"} == {*OCCURRING}
    assert sum(map(len, SUBJECTS.values())) == len(RULES), "names are unique"


@pytest.mark.parametrize("name", PLANNED)
def test_the_plan_names_the_rule_and_its_number(name: str) -> None:
    text = told(*PLANNED[name])
    assert f"(rule {name})" in text and f"({RULES[name].why})" in text


@pytest.mark.parametrize("name", OCCURRING)
def test_what_happens_names_the_rule_and_its_number(name: str) -> None:
    text = OCCURRING[name]()
    assert f"rule {name})" in text
    assert name in COUNTED or RULES[name].why in text


@pytest.mark.parametrize("name", [name for name in PLANNED if name not in CAUSED_BY_THE_PASS])
def test_without_its_cause_the_rule_is_silent(name: str) -> None:
    """The same last pass alone, on the facts as they are."""
    passes, _ = PLANNED[name]
    alone = {"few-dense-steps": SPARSE, "calibrated-at-other-precision": CALIBRATED}
    text = told([alone.get(name, passes[-1])], {"image_tokens": 8192} if name == "sparse-does-not-pay" else {})
    assert f"(rule {name})" not in text


def test_every_figure_is_a_number_with_a_source() -> None:
    for rule in RULES.values():
        assert rule.evidence and all(each.source for each in rule.evidence), rule.name
        assert any(character.isdigit() for character in rule.why), rule.name
        assert rule.name == rule.name.lower().replace(" ", "-")
        assert all(math.isfinite(value) for value in rule.parameters.values())


def test_figures_that_can_be_computed_are_right() -> None:
    cards = cards_in(shipped_folder())
    assert f"all {len(cards)} cards" in RULES["two-schedules"].why and all(card.steps for card in cards)
    assert f"{min(c.steps for c in cards)} to {max(c.steps for c in cards)}" in RULES["two-schedules"].why
    custom = sum(card.scheduler.sampler == "custom" for card in cards)
    assert RULES["missing-scheduler"].why.startswith(f"{custom} of the {len(cards)} cards")
    kinds, sized = {kind for card in cards for kind in card.classes}, sum(bool(card.config) for card in cards)
    told = f"the {len(cards)} cards that ship are for {len(kinds)} classes of denoisers, {sized} of them"
    assert RULES["another-model"].why.startswith(told)
    free = sum(card.guidance.limit <= 1 for card in cards)
    assert RULES["call-guidance"].evidence[1].figure.startswith(f"{free} of the {len(cards)} cards")
    once = 3 * 0.5 / (1 + 2 * 0.5)
    assert (once, 3 * once / (1 + 2 * once)) == pytest.approx((0.75, 0.9))
    assert bounds.best_speedup([1 / 3], [1.25]) == pytest.approx(1.07, abs=0.005)
    assert bounds.best_speedup([1 / 3], [math.inf]) == pytest.approx(1.5)
    modes = torch._inductor.list_mode_options()
    assert [mode for mode in modes if records_graphs(mode)] == ["reduce-overhead", "max-autotune"]
    assert torch._dynamo.config.recompile_limit == 8


def test_the_noise_gain_is_that_of_the_cited_model() -> None:
    assert noise_gain({0, 1}, 6) == pytest.approx(6.4, abs=0.01)
    assert noise_gain(range(0, 50, 5), 50) == pytest.approx(math.hypot(1.8, 0.8))
    assert noise_gain(range(9), 9) == 1.0, "nothing is cached"
    assert noise_gain({0}, 9) == 1.0, "reuse"
    second = [math.hypot(*bounds.lagrange_weights([0, -gap, -2 * gap], 4)) for gap in (1, 5)]
    assert second == pytest.approx([30.0, 3.4], abs=0.06)


def test_narrow_gaps_are_said_above_the_threshold_only() -> None:
    wide = Cache("svd", interval=5, warmup=1)
    assert noise_gain(Interval(5, 1).full_steps(50), 50) < RULES["narrow-gaps"].parameters["largest_noise_gain"]
    names = [f.rule for f in make_plan(FACTS, [Quantize(), wide]).findings]
    assert names == ["noise-in-differences", "even-steps"]
    for options, rules in ({"basis": "newton"}, []), ({}, ["noise-in-differences"]):
        plan = make_plan(FACTS, [Quantize(), Cache("taylorseer-published", noise=((1.0, 0.01),), **options)])
        assert [f.rule for f in plan.findings] == [*rules, "even-steps"], (
            "the floor is known; Taylor's differences are not its own"
        )
    weights_alone = make_plan(FACTS, [Quantize("nf4"), Cache("taylorseer-published")])
    assert [f.rule for f in weights_alone.findings] == ["even-steps"]
    rounded = Quantize().facts_after(FACTS)
    own = Cache("taylorseer-published", full_steps=(0, 1, 9), steps=50, calibrated_for=conditions(rounded))
    assert not make_plan(FACTS, [Quantize(), own]).findings, "finished pictures have decided"


@pytest.mark.parametrize(
    ("cache", "changes", "said"),
    [
        (Cache("taylorseer-published"), {}, True),  # 9 of 50
        (Cache("taylorseer-published", interval=4), {}, True),  # 15
        (Cache("taylorseer-published", interval=3), {}, False),  # 19
        (Cache("svd"), {}, False),
        (Cache("first-block"), {}, False),  # a gate
        (Cache("fastcache-published-merge"), {}, False),
        (Cache("svd-published"), {"sampler": "noise is added on every step"}, False),  # no corrector to be had
        (Cache("svd-published"), {"latent": (12, 36)}, False),
        (Cache("svd-published"), {"flow": False}, True),
    ],
)
def test_few_full_steps_evenly_spread_are_said(cache: Cache, changes: dict[str, Any], said: bool) -> None:
    plan = make_plan(replace(FACTS, **changes), [cache])
    assert ("even-steps" in [f.rule for f in plan.findings]) is said
    assert plan.passes() == (cache,)


@pytest.mark.parametrize(("steps", "repaired"), [(16, False), (17, True)])
def test_a_distilled_schedule_keeps_a_quarter_dense(steps: int, repaired: bool) -> None:
    facts = replace(FACTS, image_tokens=4096, steps=steps, distilled="few")
    sparse = replace(SPARSE, dense_last=2)
    (stage,) = make_plan(facts, [sparse]).stages
    assert stage.run == (replace(sparse, dense_first=3) if repaired else sparse)


@pytest.mark.parametrize("wanted", [Quantize(), EIGHT, EIGHT.beside()])
def test_linears_that_others_hold_are_not_changed(wanted: Quantize | Distill | Adapter) -> None:
    found = wanted.check(replace(FACTS, carries=(LORA, FUSED, OFFLOADED)))
    assert [f.rule for f in found if f.fatal] == ["unmerged-lora", "fused-projections", "offloaded-modules"]
    assert not [f for f in Distill("flux-schnell").check(replace(FACTS, carries=(LORA,))) if f.fatal], "no weights"


def test_strict_refuses_repairs_and_keeps_notes() -> None:
    passes, changes = PLANNED["few-dense-steps"]
    with pytest.raises(StackError, match=r"3 of 16 steps of hyper-flux-16 are dense .*\(rule few-dense-steps\)"):
        make_plan(replace(FACTS, **changes), passes, strict=True)
    passes, changes = PLANNED["calibrated-for-other-steps"]
    assert len(make_plan(replace(FACTS, **changes), passes, strict=True).stages) == 1


def test_the_page_is_written_from_the_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert PAGE.read_text() == page(), "write it anew: ditstack rules --write docs/composability.md"
    headings = [line[4:] for line in page().splitlines() if line.startswith("### ")]
    assert headings == list(RULES)
    with pytest.raises(SystemExit) as done:
        main(["rules", "--write", str(tmp_path / "page.md")])
    assert not done.value.code and (tmp_path / "page.md").read_text() == page()
    with pytest.raises(SystemExit):
        main(["rules", "narrow-gaps"])
    said = capsys.readouterr().out
    assert "gap 1 used 4 steps away gains 6.4 times the noise" in said and "`largest_noise_gain` 2" in said


def test_an_unknown_rule_names_the_known_ones() -> None:
    with pytest.raises(StackError, match=r"unknown rule 'few-step': expected one of .*few-steps"):
        rule_named("few-step")


def test_the_readme_counts_them() -> None:
    assert f"[{len(RULES)} known clashes]" in (PAGE.parents[1] / "README.md").read_text()
