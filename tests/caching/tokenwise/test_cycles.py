from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.caching.schedules import Interval
from stack.caching.tokenwise.cycles import PACES, Cycle, fill
from stack.core.errors import StackError


@pytest.mark.parametrize(
    ("interval", "start"),
    [(3, "FcaFcaFca"), (5, "FcacaFcaca"), (4, "FcacFcac"), (2, "FcFcFc"), (1, "FFFF")],
)
def test_counting_up_a_cycle_opens_with_its_full_step(interval: int, start: str) -> None:
    assert Cycle(interval, 1).kinds(50).startswith(start)


def test_toca_is_duca_with_every_aggressive_step_conservative() -> None:
    for pace in PACES:
        duca, toca = (Cycle(4, 2, between, pace).kinds(50) for between in ("ca", "c"))
        assert toca == duca.replace("a", "c") != duca


def test_the_simulated_string_of_dit() -> None:
    """DDIM-50, N = 3, w = 0.4, interval 2 in the halved stretch."""
    kinds = Cycle(3, 1, "ca", "dit").kinds(50)
    assert kinds == "FcacFFcacFcacFcacFcFacFacFacFacFcFcFcFcFcFcFcFcFcF"
    assert Counter(kinds) == {"F": 20, "c": 22, "a": 8}


def test_the_simulated_counts_of_dit_at_interval_4() -> None:
    assert Counter(Cycle(4, 1, "ca", "dit").kinds(50)) == {"F": 17, "c": 22, "a": 11}


def test_intervals_are_long_while_it_is_noisy() -> None:
    pace = PACES["dit"]
    assert [pace.interval(3, left, 50) for left in (49, 30, 20, 19, 10, 9, 0)] == [5, 3, 3, 2, 2, 2, 2]
    full = sorted(Cycle(4, 1, "c", "pixart").full_steps(50))
    assert full[1] - full[0] == 5 and full[-1] - full[-2] == 3


@pytest.mark.parametrize(("interval", "full"), [(4, 14), (5, 12), (6, 10)])
def test_the_warm_up_opens_the_first_cycle_as_published_for_flux(interval: int, full: int) -> None:
    """Published TFLOPs of 50 steps, 3719.5 in full: 1263.2 / 1126.8 / 990.3. With these counts of full steps the three
    agree on what a conservative step costs; with cycles counted from step 0 they would not."""
    kinds = Cycle(interval, 3, "c").kinds(50)
    assert kinds.startswith("FFF" + "c" * (interval - 1) + "F")
    assert kinds.count("F") == full
    published = {4: 1263.2, 5: 1126.8, 6: 990.3}[interval]
    step = 3719.5 / 50
    assert (published - full * step) / (50 - full) == pytest.approx(6.16, abs=0.01)


@given(st.integers(1, 9), st.integers(1, 5), st.sampled_from(["ca", "c", "a", "cca"]), st.integers(1, 80))
def test_an_even_pace_is_the_interval_schedule_filled(interval: int, warmup: int, between: str, steps: int) -> None:
    cycle, plain = Cycle(interval, warmup, between), Interval(interval, warmup)
    assert cycle.full_steps(steps) == plain.full_steps(steps)
    assert cycle.kinds(steps) == fill(plain.full_steps(steps), steps, between)


@given(st.integers(1, 9), st.sampled_from(sorted(PACES)), st.integers(1, 120))
def test_the_first_step_is_full_at_every_pace(interval: int, pace: str, steps: int) -> None:
    kinds = Cycle(interval, 1, "ca", pace).kinds(steps)
    assert len(kinds) == steps and kinds[0] == "F"


def test_a_calibrated_schedule_is_filled_from_its_full_steps() -> None:
    assert fill((0, 1, 6, 8), 12, "ca") == "FFcacaFcFcac"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"interval": 0}, "at least 1"),
        ({"warmup": 0}, "at least 1"),
        ({"between": ""}, "made of c"),
        ({"between": "cF"}, "made of c"),
        ({"pace": "fast"}, "unknown pace of the cache 'fast'"),
    ],
)
def test_impossible_cycles_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(StackError, match=words):
        Cycle(**options)
