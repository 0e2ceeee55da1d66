"""Policies and their parts: every range, and the errors' exact words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stack import StackError
from stack.caching.cache import Cache
from stack.caching.contract import GATES, SITES
from stack.caching.gate_policies import BudgetPolicy, PrefixPolicy, SumPolicy
from stack.caching.methods import PRESETS
from stack.caching.policy import Policy, known_options
from stack.caching.sites.block_range import OutputSite, ResidualSite
from stack.caching.sites.per_module import PerModuleSite
from stack.caching.splits import BandSplit, ChannelSplit
from stack.models.schedule import uniform


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"interval": 0}, "interval and warmup must be at least 1, got interval=0, warmup=3"),
        ({"warmup": 0}, "interval and warmup must be at least 1, got interval=7, warmup=0"),
        ({"spread": "dense"}, "unknown spread of full steps 'dense': expected one of by-noise, even"),
        ({"full_steps": 9}, "full_steps: expected the steps to run in full, got 9; calibrate(..., full_steps=9)"),
        ({"full_steps": (1, 2), "steps": 9}, "full_steps must hold 0 and lie within 0..8, got [1, 2]"),
        ({"full_steps": (0, 9), "steps": 9}, "full_steps must hold 0 and lie within 0..8, got [0, 9]"),
        ({"full_steps": (0, 4), "steps": 9, "full_at": (1.0,)}, "expected a noise level per full step, 2, got 1"),
        ({"full_steps": (0, 4), "steps": 9, "segments": (1.0,)}, "expected a factor per full step, 2, got 1"),
        ({"order": 5}, "order must be in 0..4, got 5"),
        ({"basis": "fourier"}, "unknown basis of a forecast 'fourier': expected one of hermite, newton, taylor"),
        ({"gains": (1.0, 2.5)}, "gains must be (principal, residual), each in [0, 2], got (1.0, 2.5)"),
        ({"level": 1.0}, "level must be in [0, 1), got 1.0: it is the weight of the older value"),
        ({"smoothing": -0.1}, "smoothing must be in [0, 1), got -0.1: it is the weight of the older value"),
        ({"coordinate": "t"}, "unknown coordinate 't': expected one of log-snr, sigma, step, time"),
        ({"energy": 0.0}, "energy must be in (0, 1], got 0.0"),
        ({"basis_life": "week"}, "unknown life of the basis 'week': expected one of request, warm"),
        ({"split": "band", "cutoff": 0.0}, "cutoff must be in"),
        ({"split": "rows"}, "unknown split of the cache 'rows': expected one of band, channels"),
        ({"front": -1}, "front and back must be at least 0, got -1 and 0"),
        ({"back": -1}, "front and back must be at least 0, got 0 and -1"),
        ({"site": "head"}, "unknown site of the cache 'head': expected one of attention, "),
        ({"gate": "coin"}, "unknown gate of the cache 'coin': expected one of , budget, "),
        ({"state_dtype": "int8"}, "unknown state_dtype of the cache 'int8': expected one of , bfloat16, "),
        ({"max_bytes": -1}, "max_bytes must be at least 0, got -1: 0 is no limit"),
        ({"noise": ((1.0, 1.0),)}, "noise must be (sigma, relative error) pairs with errors in [0, 1)"),
        ({"gate": "sum"}, "gate 'sum' cannot decide here: expected site 'relational' or 'whole-model', got 'output'"),
        ({"gate": "budget", "threshold": 1.5}, "an error budget needs back=0 and a relative error in (0, 1)"),
        ({"gate": "budget", "threshold": 0.0}, "an error budget needs back=0 and a relative error in (0, 1)"),
        ({"gate": "budget", "threshold": 0.1, "back": 1}, "such as 0.02: got back=1, max_error=0.1"),
        ({"gate": "draft", "accept": (0.3, 0.3, 0.02)}, "drafts are checked on a back block: expected back=1 or more"),
        ({"gate": "draft", "corrected": True}, "a corrector cannot go with gate 'draft'"),
        ({"site": "whole-model", "corrected": True}, "a corrector cannot go with site 'whole-model'"),
        ({"site": "fastcache", "parts": ("glue",)}, "unknown part of FastCache 'glue'"),
        ({"site": "fastcache", "approximation": "spline"}, "unknown approximation of FastCache 'spline'"),
        ({"site": "fastcache", "alpha": 0.0}, "expected alpha in (0, 1) and merged in (0, 1], got 0.0 and 0.9"),
        ({"site": "fastcache", "merged": 1.1}, "expected alpha in (0, 1) and merged in (0, 1], got 0.05 and 1.1"),
        ({"site": "fastcache", "neighbours": 0}, "neighbours of at least 1, got 0.5, 0 and 1.0"),
        ({"site": "fastcache", "adaptive": (1.0,)}, "adaptive must be (b0, b1, b2, b3) or empty, got (1.0,)"),
        ({"site": "tokens", "ratio": -0.1}, "ratio must be in [0, 1], got -0.1: it is a share of the tokens"),
        ({"site": "tokens", "pace": "slow"}, "unknown pace of the cache 'slow'"),
        ({"back": 1, "split": "band", "gains": (0.0, 1.0)}, "expected site 'output' or 'residual' and back=0, got"),
        ({"interva": 3}, "unknown option of the cache 'interva': did you mean 'interval'?"),
        ({"cutof": 3}, "unknown option of the cache 'cutof': did you mean 'cutoff'?"),
        ({"cutoff": 0.2}, "'cutoff' is an option of split 'band': this cache has site 'output', no gate and split"),
        ({"ratios": (1.0,)}, "'ratios' is an option of gate 'magnitude': this cache has site 'output', no gate and"),
    ],
)
def test_every_range_has_its_error(options: dict[str, Any], error: str) -> None:
    with pytest.raises(StackError) as raised:
        Policy.of(**options)
    assert error in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("method", list(PRESETS))
def test_flat_options_make_the_same_policy_again(method: str) -> None:
    policy = PRESETS[method]
    assert Policy().changed(**policy.options()) == policy
    assert Cache(method).options() == {"method": method}
    assert set(policy.options()) <= set(known_options())


def test_options_that_differ_make_the_cache_again() -> None:
    cache = Cache("dbcache", site="output", front=0, interval=5, threshold=0.1)
    assert cache.options() == {"method": "dbcache", "site": "output", "front": 0, "interval": 5, "threshold": 0.1}
    assert Cache(**cache.options()) == cache
    spent = Cache("svd", max_error=0.02)
    assert spent.options() == {"method": "svd", "gate": "budget", "threshold": 0.02}
    assert Cache(**spent.options()) == spent
    assert Cache("svd", interval=5).options() == {"method": "svd", "interval": 5}, "an interval is even"
    spread = Cache("svd").having(PRESETS["svd"].changed(interval=5, spread="by-noise"))
    assert spread.options() == {"method": "svd", "interval": 5, "spread": "by-noise"}
    even = Cache("svd").having(PRESETS["svd"].changed(spread="even", corrected=False))
    assert even.options() == {"method": "svd", "spread": "even", "corrected": False}


def test_an_interval_is_even_and_drafts_are_not_corrected() -> None:
    svd = PRESETS["svd"]
    assert (svd.schedule.spread, svd.corrected) == ("by-noise", True)
    for named in ({"interval": 5}, {"warmup": 2}, {"interval": 5, "warmup": 2}):
        assert svd.changed(**named).schedule.spread == "even"
        assert svd.changed(**named, count=6).schedule.spread == "by-noise"
        assert svd.changed(**named, spread="by-noise").schedule.spread == "by-noise"
        assert svd.changed(**named).corrected
    assert svd.changed(gate="prefix", threshold=0.1).corrected and svd.changed(gate=PrefixPolicy(0.1)).corrected
    assert not svd.changed(gate="draft").corrected
    assert not svd.changed(site="whole-model").corrected and svd.changed(site="per-module").corrected
    with pytest.raises(StackError, match="a corrector cannot go with"):
        svd.changed(site="whole-model", corrected=True)


def test_a_part_that_is_exchanged_hands_on_what_both_have() -> None:
    dbcache = PRESETS["dbcache"]
    assert dbcache.changed(site="output").site == OutputSite(front=2, back=1)
    assert dbcache.changed(gate="magnitude").gate is not None
    assert dbcache.changed(gate="magnitude").options()["threshold"] == 0.08
    assert dbcache.changed(gate="").gate is None
    assert dbcache.changed(gate="", site="per-module").site == PerModuleSite()
    assert Policy.of(split="band").split == BandSplit() and Policy().split == ChannelSplit()
    assert Policy.of(site=ResidualSite(1, 1), gate=PrefixPolicy(0.1)) == Policy.of(
        site="residual", front=1, back=1, gate="prefix", threshold=0.1
    )


def test_who_decides() -> None:
    by_schedule = {name for name, policy in PRESETS.items() if policy.scheduled}
    gated = {"first-block", "dbcache", "dbcache-taylor", "teacache", "magcache", "rfc"}
    assert {name for name, policy in PRESETS.items() if policy.gate} == {
        *gated, *(f"{name}-published" for name in gated), "speca-published", "easycache", "easycache-published",
    }  # fmt: skip
    assert {name for name in PRESETS if name.startswith("fastcache")} == {
        name for name, policy in PRESETS.items() if policy.site.decides
    }
    assert {name for name, policy in PRESETS.items() if policy.correctable} - by_schedule == {
        *gated, *(f"{name}-published" for name in gated),
    }  # fmt: skip


def test_what_sites_tell() -> None:
    told = {name: (site.noise_feature, site.correctable, site.divisible) for name, site in SITES.items()}
    assert {name: value for name, value in told.items() if name in OWN_SITES} == {
        "output": ("last hidden state", True, False),
        "residual": ("whole residual", True, False),
        "per-block": ("blocks", True, True),
        "per-module": ("blocks", True, True),
        "attention": ("blocks", True, True),
        "relational": ("blocks", True, True),
        "tokens": ("blocks", True, False),
        "fastcache": ("output", False, False),
        "whole-model": ("output", False, False),
        "x0": ("output", True, False),
    }


OWN_SITES = (
    "output", "residual", "per-block", "per-module", "attention", "relational", "tokens", "fastcache", "whole-model",
    "x0",
)  # fmt: skip


def test_what_gates_tell() -> None:
    told = {n: (g.reads_per_step, bool(g.fitted_by), g.self_timed, g.keeps_probe) for n, g in GATES.items()}
    assert told == {
        "prefix": (1, False, False, True),
        "polynomial": (1, True, False, True),
        "magnitude": (0, True, False, False),
        "sum": (1, False, False, False),
        "draft": (1, False, False, False),
        "budget": (0, True, True, False),
    }


def test_gates_are_loosened_by_a_factor() -> None:
    assert BudgetPolicy(0.02, error_scale=3.0).loosened(2.0) == BudgetPolicy(0.04, error_scale=3.0)
    speca = PRESETS["speca-published"].gate
    assert speca is not None and speca.loosened(2.0) == replace(speca, accept=(0.6, 0.3, 0.04))
    fast = PRESETS["fastcache"].site
    assert fast.threshold_scaled(2.0) == replace(fast, threshold=0.06)
    assert PRESETS["fastcache-published-merge"].site.threshold_scaled(2.0) is None


def test_a_sum_gate_waits_for_the_slope_where_the_site_measures_one() -> None:
    around, inside = (PRESETS[name].new_gate(uniform(10)) for name in ("easycache-published", "rfc"))
    assert isinstance(PRESETS["rfc"].gate, SumPolicy)
    assert vars(around) | {"total": 0.0} == {
        "threshold": 0.025, "warmup": 5, "longest": 0, "slope": None, "ends": True, "total": 0.0,
    }  # fmt: skip
    assert (vars(inside)["slope"], vars(inside)["ends"]) == (1.0, False)


OTHER_TYPES: list[tuple[dict[str, Any], str]] = [
    ({"site": 3}, "or a Site, got 3"),
    ({"site": None}, "or a Site, got None"),
    ({"gate": 1}, "expected one of budget, draft, magnitude, polynomial, prefix, sum, or a GatePolicy, got 1"),
    ({"gains": 0.9}, "cache.gains: expected a list of 2, each a finite number, got 0.9"),
    ({"noise": 0.1}, "cache.noise: expected a list"),
    ({"max_bytes": "1GB"}, "cache.max_bytes: expected a whole number, got '1GB'"),
    ({"front": "a"}, "cache.front: expected a whole number, got 'a'"),
    ({"site": "tokens", "cycle": 3}, "cache.cycle: expected a text, got 3"),
    ({"schedule": "even"}, "cache.schedule: expected a SchedulePolicy, got 'even'; try its choices by name: interval"),
    ({"forecast": None}, "cache.forecast: expected a Forecast, got None"),
    ({"full_steps": (0, 2.5, 5)}, "cache.full_steps[1]: expected a whole number of at least 0"),
    ({"corrected": "yes"}, "cache.corrected: expected true or false, got 'yes'"),
    ({"interval": True}, "cache.interval: expected a whole number, got True"),
    ({"energy": float("nan")}, "cache.energy: expected a finite number, got nan"),
    ({"noise": ((1.0, float("inf")),)}, "cache.noise[0][1]: expected a finite number, got inf"),
    ({"switches": (2.0,)}, "cache.switches[0]: expected a finite number of at least 0 and at most 1, got 2.0"),
    ({"site": "residual", "gate": "prefix", "threshold": -1.0}, "cache.threshold: expected a finite number of at"),
    ({"max_error": "small"}, "cache.max_error: expected a finite number of at least 0, got 'small'"),
    ({"max_error": 0.1, "gate": "prefix"}, "max_error is a gate of its own: expected it alone, got 'gate' beside it"),
    ({"max_error": 0.1, "threshold": 0.1}, "got 'threshold' beside it"),
    ({"reuse_maps": 1}, "option of the cache 'reuse_maps': the nearest are 'maps', 'steps', 'segments', 'full_steps'"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), OTHER_TYPES)
def test_a_value_of_another_type_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StackError) as error:
        Cache("svd", **options)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("method", [["svd"], 3, None])
def test_a_method_is_a_text(method: Any) -> None:
    with pytest.raises(StackError, match=r"cache\.method: expected a text, got"):
        Cache(method)


def test_lists_and_numpys_numbers_are_taken_for_what_they_stand_for() -> None:
    policy = Cache("svd", gains=[1, 0.5], full_steps=[0, 3], steps=9, interval=np.int64(4)).policy
    assert policy.forecast.gains == (1, 0.5) and policy.schedule.full_steps == (0, 3)
    assert type(policy.schedule.full_steps) is tuple and policy.schedule.interval == 4
