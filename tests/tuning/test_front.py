"""Which of the measured stacks are looked at again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stack.tuning.front import NOISE, best, finalists, pareto
from stack.tuning.limits import Limits
from stack.tuning.study import Tried

from .test_limits import figures

LIMITS = Limits(min_psnr=40)


def tried(psnr: float, speedup: float) -> Tried:
    measured = figures(psnr, speedup)
    return Tried({"cache": {"count": speedup, "level": psnr}}, measured, LIMITS.excess(measured))


measured = st.lists(st.tuples(st.integers(20, 60), st.integers(1, 20)), min_size=1, max_size=12, unique=True)


@given(measured)
def test_nothing_beats_the_front_and_all_else_is_beaten(points: list[tuple[int, int]]) -> None:
    found = [tried(*point) for point in points]
    front = pareto(found)

    def beats(one: Tried, other: Tried) -> bool:
        better = (one.figures.speedup, one.figures.psnr), (other.figures.speedup, other.figures.psnr)
        return better[0] != better[1] and all(a >= b for a, b in zip(*better, strict=True))

    assert not any(beats(one, kept) for one in found for kept in front)
    for one in found:
        same = any((k.figures.speedup, k.figures.psnr) == (one.figures.speedup, one.figures.psnr) for k in front)
        assert same or any(beats(kept, one) for kept in front)


@given(measured, st.integers(1, 6))
def test_finalists_hold_the_fastest_within_the_limits(points: list[tuple[int, int]], most: int) -> None:
    found = [tried(*point) for point in points]
    chosen = finalists(found, LIMITS, most)
    assert len(chosen) == min(most, len(found)) == len({id(one) for one in chosen})
    within = [one for one in found if not one.excess]
    fastest = best(found, LIMITS)
    if within:
        most_speedup = max(one.figures.speedup for one in within)
        assert fastest is not None and fastest.figures.speedup >= (1 - NOISE) * most_speedup
        assert any(one.figures.speedup >= (1 - NOISE) * most_speedup and not one.excess for one in chosen)


def test_some_that_are_nearly_within_are_checked_as_well() -> None:
    found = [tried(41, 5), tried(39.5, 9), tried(39, 8), tried(38.9, 7), tried(30, 20), tried(45, 4)]
    chosen = finalists(found, LIMITS, 4)
    assert [(one.figures.psnr, one.figures.speedup) for one in chosen] == [(39.5, 9), (41, 5), (45, 4), (39, 8)]


def test_of_those_as_fast_the_better_one_is_checked() -> None:
    found = [tried(41, 10), tried(44, 9.8), tried(46, 9.6), tried(43, 11), tried(50, 9.4)]
    assert pareto(found) == [found[3], found[1], found[2], found[4]]
    assert pareto(found, 0.05) == [found[3], found[4]]
    assert finalists(found, LIMITS, 2) == [found[3], found[4]]


def test_of_those_as_fast_the_better_one_is_best() -> None:
    found = [tried(41, 10), tried(44, 9.8), tried(46, 9.4), tried(39, 11)]
    assert best(found, LIMITS) is found[1]
    in_time = Limits(max_seconds=1.0)
    assert best([tried(44, 9.8), tried(43.9, 10)], in_time).figures.psnr == 44  # type: ignore[union-attr]


def test_the_same_stack_is_checked_once() -> None:
    found = [tried(41, 5), tried(41, 5), tried(42, 4)]
    assert finalists(found, LIMITS, 6) == [found[0], found[2]]


def test_without_any_within_the_limits_the_nearest_is_best() -> None:
    found = [tried(30, 20), tried(36, 2)]
    assert best(found, LIMITS) is found[1] and best([], LIMITS) is None
