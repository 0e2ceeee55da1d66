from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack import Stack, StackError
from stack.caching.cache import Cache
from stack.caching.gate_policies import PrefixPolicy
from stack.caching.sites.tokenwise import TokenSite
from stack.calibration.goals import Goal
from stack.calibration.thresholds import CLOSE, Point, boundary, chosen, loosened

from ...conftest import PROMPT, tiny_pipe

STEPS = 14
OTHERS = ["a green circle", "a cyan star on a white background"]


@given(st.floats(0.02, 50), st.booleans())
def test_the_boundary_is_found_wherever_it_is(turn: float, above: bool) -> None:
    tried: list[float] = []

    def accepts(factor: float) -> bool:
        tried.append(factor)
        return (factor >= turn) is above

    boundary(accepts, above, lambda: True)
    best = min(f for f in tried if f >= turn) / turn if above else turn / max(f for f in tried if f < turn)
    assert 1 <= best <= CLOSE and len(tried) < 20


@given(st.integers(1, 6))
def test_no_more_is_tried_than_allowed(most: int) -> None:
    made = count()
    tried: list[float] = []

    def accepts(factor: float) -> bool:
        tried.append(factor)
        return factor > 3.3

    boundary(accepts, True, lambda: next(made) < most - 1)
    assert len(tried) == most


def test_the_best_of_those_that_serve() -> None:
    points = [Point(1, 40.0, 14, 1.4), Point(2, 36.0, 9, 0.9), Point(1.5, 38.0, 11, 1.1), Point(4, 30.0, 6, 0.6)]
    assert chosen(points, Goal(min_psnr=35.0)).factor == 2
    assert chosen(points, Goal(full_steps=12)).factor == 1.5
    assert chosen(points, Goal(max_seconds=0.95)).factor == 2
    tried = r"tried 40\.0 dB at 14 full steps in 1\.40 s"
    with pytest.raises(StackError, match=f"no threshold reached min_psnr=50: {tried}"):
        chosen(points, Goal(min_psnr=50.0))


def test_a_drafts_bound_is_loosened_as_a_whole() -> None:
    base, decay, floor = Cache("speca-published").policy.options()["accept"]
    assert loosened(Cache("speca-published"), 2.0).policy.options()["accept"] == (2 * base, decay, 2 * floor)
    assert loosened(Cache("first-block"), 0.5).policy.gate == PrefixPolicy(0.04)


@pytest.mark.parametrize("method", ["first-block", "easycache-published", "speca-published"])
def test_a_gate_keeps_to_its_number_of_full_steps(method: str) -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache(method)
    found = stack.calibrate([PROMPT, OTHERS[0]], OTHERS[1:], full_steps=9, trials=6, progress=False)
    assert found.full <= 9 and found.trials <= 6
    cache = next(p for p in stack.passes if isinstance(p, Cache))
    assert cache == found.cache and (found.kept or cache.policy.calibrated_for) and not cache.full_steps
    assert {"threshold", "accept"} & set(cache.measured) or found.psnr_db == found.start_psnr_db


def test_a_cycle_is_given_a_schedule() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("duca-published")
    found = stack.calibrate([PROMPT, OTHERS[0]], OTHERS[1:], full_steps=6, trials=4, progress=False)
    assert len(found.full_steps) == 6 and found.psnr_db >= found.start_psnr_db
    policy = found.cache.policy
    assert isinstance(policy.site, TokenSite)
    kinds = policy.site.kinds(policy, STEPS)
    assert kinds.count("F") == 6 and set(kinds) == set("Fca")


def test_fastcache_is_calibrated_to_a_psnr_not_to_a_count() -> None:
    stack = Stack(tiny_pipe(), steps=STEPS).cache("fastcache-published-gate", approximation="delta")
    stack.fit_maps([PROMPT, *OTHERS], progress=False)
    with pytest.raises(StackError, match="expected min_psnr= or max_seconds="):
        stack.calibrate([PROMPT, OTHERS[0]], OTHERS[1:], full_steps=5, progress=False)
    found = stack.calibrate([PROMPT, OTHERS[0]], OTHERS[1:], min_psnr=35.0, trials=6, progress=False)
    assert found.psnr_db >= 35.0 and found.cache.policy.site.fitted["maps"] is not None
