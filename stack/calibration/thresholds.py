"""Calibration of caches that decide by a threshold: how loose their gate may be for what is asked."""

from __future__ import annotations

from collections.abc import Callable

from ..caching.cache import Cache
from ..core.errors import StackError
from .goals import Goal
from .time_budget import STOPPED
from .trials import Point, Trials

WIDEST = 64.0  # times the preset's own threshold, and a share of it: beyond, a gate is always open or always shut
CLOSE = 1.03  # two thresholds no further apart than this decide alike


def loosened(cache: Cache, factor: float) -> Cache:
    """The cache with its threshold, or the bound on its drafts, multiplied."""
    gate, site = cache.policy.gate, cache.policy.site.threshold_scaled(factor)
    if gate is not None:
        return cache.changed(gate=gate.loosened(factor))
    return cache if site is None else cache.changed(site=site)


def boundary(accepts: Callable[[float], bool], above: bool, left: Callable[[], bool]) -> None:
    """Close in on the factor at which `accepts` turns, by doubling from 1 and then by bisection in the logarithm.

    Args:
        accepts: asked for each factor tried; monotone, or nearly so.
        above: whether larger factors are the accepted ones.
        left: whether another factor may be tried; not asked for the first.
    """
    inside = accepts(1.0)
    step = 2.0 if inside != above else 0.5
    near = far = 1.0
    while left() and 1 / WIDEST <= far * step <= WIDEST:
        near, far = far, far * step
        if accepts(far) != inside:
            break
    else:
        return
    while left() and max(near / far, far / near) > CLOSE:
        middle = (near * far) ** 0.5
        if accepts(middle) == inside:
            near = middle
        else:
            far = middle


def tuned(
    trials: Trials,
    goal: Goal,
    left: Callable[[int], bool],
    seen: Callable[[float], None],
    stopped: Callable[[BaseException], None],
) -> tuple[Cache, list[Point]]:
    """The cache with the threshold that serves the goal best, and every threshold tried, the cache's own first.

    Args:
        left: whether another one may be tried after so many.
        seen: called with the PSNR of each trial.
        stopped: called with the exception that ended the search. One before the first trial is raised instead.

    Raises:
        StackError: no threshold that was tried serves the goal.
    """
    points: list[Point] = []

    def accepts(factor: float) -> bool:
        points.append(trials.measured(loosened(trials.cache, factor), factor))
        seen(points[-1].psnr)
        return serves(points[-1], goal)

    try:
        boundary(accepts, above=not goal.min_psnr, left=lambda: left(len(points)))
    except STOPPED as stop:
        if not points:
            raise
        stopped(stop)
    best = chosen(points, goal)
    return loosened(trials.cache, best.factor), points


def serves(point: Point, goal: Goal) -> bool:
    """Whether a threshold does what is asked."""
    if goal.min_psnr:
        return point.psnr >= goal.min_psnr
    return point.seconds <= goal.max_seconds if goal.max_seconds else point.full <= goal.full_steps


def chosen(points: list[Point], goal: Goal) -> Point:
    """The best of those that serve: the fewest full steps for a PSNR, the highest PSNR for a pace.

    Raises:
        StackError: none does.
    """
    serving = [p for p in points if serves(p, goal)]
    if not serving:
        tried = ", ".join(f"{p.psnr:.1f} dB at {p.full:.3g} full steps in {p.seconds:.2f} s" for p in points)
        raise StackError(f"no threshold reached {goal.words}: tried {tried}")
    return min(serving, key=lambda p: p.seconds if goal.min_psnr else -p.psnr)
