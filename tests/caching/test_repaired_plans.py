"""What a cache is changed to on the stack below it, and what is said of it: pure functions of policy and facts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stack.caching.cache import Cache
from stack.caching.checks import judged
from stack.caching.clashes import clashes
from stack.caching.forecast import Forecast
from stack.caching.methods import PRESETS
from stack.caching.policy import Policy
from stack.caching.repairs import always_running, for_few_steps, for_noise
from stack.caching.schedule_policy import SchedulePolicy
from stack.caching.sites.block_range import OutputSite, ResidualSite
from stack.compat.noise import rounding_floor
from stack.core.facts import Facts

from .test_memory import SHAPES_FLUX

FACTS = replace(SHAPES_FLUX, steps=50, pipeline=True)
INT8 = replace(FACTS, weight_bits=8, activation_bits=8)


def rules(policy: Policy, facts: Facts) -> list[str]:
    return [finding.rule for finding, _ in judged(policy, facts, "cache", "svd-published")]


def test_few_steps_get_full_steps_by_noise_level_and_keep_what_is_cached() -> None:
    kept = Policy.of(site="per-module", state_dtype="bfloat16", max_bytes=9, noise=((1.0, 0.01),), order=2)
    for steps, count in ((4, 3), (5, 3), (8, 5)):
        made = for_few_steps(kept, replace(FACTS, steps=steps))
        assert made == replace(
            kept,
            schedule=SchedulePolicy(count=count, spread="by-noise"),
            forecast=replace(kept.forecast, order=1, coordinate="time", basis="newton"),
            corrected=True,
        )
        assert len(made.full_steps(replace(FACTS, steps=steps))) == count
    assert for_few_steps(PRESETS["reuse"], replace(FACTS, steps=8)).forecast.order == 0
    gated = for_few_steps(PRESETS["dbcache"], replace(FACTS, steps=8))
    assert gated.gate is None and gated.site == OutputSite() and gated.corrected


@pytest.mark.parametrize("facts", [replace(FACTS, pipeline=False), replace(FACTS, sampler="noise")])
def test_few_steps_get_partial_depth_without_a_corrector_and_keep_what_is_about_the_state(facts: Facts) -> None:
    kept = Policy.of(site="per-module", state_dtype="bfloat16", max_bytes=9, noise=((1.0, 0.01),), order=2)
    assert for_few_steps(kept, replace(facts, steps=8)) == Policy(
        schedule=SchedulePolicy(interval=2, warmup=1, switches=(0.875,)),
        forecast=Forecast(order=1, gains=(1.0, 1.0)),
        site=ResidualSite(2, 2),
        state_dtype="bfloat16",
        max_bytes=9,
        noise=((1.0, 0.01),),
    )
    assert always_running(for_few_steps(kept, facts), facts) == pytest.approx(4 / 6)
    assert always_running(kept, facts) == 0


def test_rounded_activations_change_the_forecast_and_name_their_floor() -> None:
    floor = rounding_floor(8, FACTS.width)
    quiet = for_noise(PRESETS["taylorseer-published"], INT8)
    assert quiet is not None and quiet.noise == ((0.0, floor), (1.0, floor))
    assert quiet.forecast == replace(PRESETS["taylorseer-published"].forecast, basis="newton")
    coarse = for_noise(PRESETS["taylorseer-published"], replace(INT8, activation_bits=6))
    assert coarse is not None and coarse.forecast.order == 1
    assert for_noise(PRESETS["fora-published"], INT8) is None, "nothing is differenced"
    assert for_noise(PRESETS["svd-published"], FACTS) is None, "nothing is rounded"
    assert for_noise(PRESETS["svd-published"].changed(full_steps=(0, 9), steps=50), INT8) is None, (
        "pictures have decided"
    )
    assert for_noise(PRESETS["svd-published"].changed(noise=((1.0, 0.01),)), INT8) is None, (
        "it is measured, and handled"
    )


def test_repairs_build_on_one_another() -> None:
    """A corrector that the sampler forbids goes first; the rest is told of the cache without it."""
    policy = PRESETS["svd-published"].changed(
        corrected=True, full_steps=(0, 9), steps=50, calibrated_for=("family=dit",)
    )
    told = judged(policy, replace(FACTS, sampler="a sampler with noise"), "cache", "svd-published")
    found = [finding.rule for finding, _ in told]
    assert found[:2] == ["sampler-not-plain", "calibrated-elsewhere"]
    (_, first), (_, second) = told[:2]
    assert first == replace(policy, corrected=False)
    assert second is not None and not second.corrected and not second.schedule.full_steps
    assert second.schedule.interval == 25


def test_a_schedule_calibrated_elsewhere_is_spread_as_the_cache_spreads() -> None:
    full = {"full_steps": (0, 3, 9, 20, 35, 48), "steps": 50, "calibrated_for": ("family=dit",)}
    for name, where in (("svd", "6 full steps placed by noise level"), ("svd-published", "6 evenly spread full steps")):
        preset = PRESETS[name]
        finding, plain = judged(preset.changed(**full), FACTS, "cache", name)[0]
        assert finding.rule == "calibrated-elsewhere" and finding.repair.startswith(where)
        assert plain is not None and plain.schedule.spread == preset.schedule.spread
        assert plain.corrected == preset.corrected
        assert name != "svd" or len(plain.full_steps(FACTS)) == 6


def test_what_is_refused_ends_the_list() -> None:
    ((finding, policy),) = judged(PRESETS["magcache"], FACTS, "cache", "magcache")
    assert finding.fatal and policy is None and "magcache needs the ratios" in finding.what
    ((finding, _),) = judged(
        PRESETS["predictor-corrector"], replace(FACTS, sampler="noise"), "cache", "predictor-corrector"
    )
    assert finding.fatal and finding.rule == "sampler-not-plain"


def test_full_steps_move_to_where_the_way_of_computing_changes() -> None:
    told = judged(PRESETS["svd-published"], replace(FACTS, switches=(0.5,)), "cache", "svd-published")
    ((finding, moved),) = [each for each in told if each[1] is not None]
    assert finding.rule == "switch-under-cache" and moved is not None and moved.schedule.switches == (0.5,)
    assert 25 in moved.schedule_for(50).full_steps(50)
    assert "switch-under-cache" not in rules(PRESETS["first-block"], replace(FACTS, switches=(0.5,)))


def test_sites_and_gates_speak_for_themselves() -> None:
    sparse, cuda = replace(FACTS, attention_density=0.5), replace(FACTS, machine=replace(FACTS.machine, device="cuda"))
    told = {
        name: {f.rule for f in clashes(PRESETS[name], sparse, "cache")} for name in ("pab-published", "fora-published")
    }
    assert told["pab-published"] - told["fora-published"] == {"attention-cached-and-sparse"}
    waiting = {n for n, p in PRESETS.items() if "gate-reads-device" in {f.rule for f in clashes(p, cuda, "cache")}}
    assert {name.removesuffix("-published") for name in waiting} == {
        "first-block", "dbcache", "dbcache-taylor", "teacache", "speca", "easycache", "rfc",
    }  # fmt: skip
    rounded = {n for n, p in PRESETS.items() if "gate-threshold" in {f.rule for f in clashes(p, INT8, "cache")}}
    assert rounded == {n for n, p in PRESETS.items() if p.gate}
    spent = Cache("svd-published", max_error=0.02).policy
    assert "gate-threshold" not in {f.rule for f in clashes(spent, INT8, "cache")}, "it is measured in every request"
