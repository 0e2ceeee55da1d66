"""Searched places of a solver: the climb on a known landscape, and a search on a pipeline."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from stack import Stack, StackError
from stack.calibration.place_search import climb, moved, search_places
from stack.calibration.solver_fit import fit_solver
from stack.measure.metrics import psnr
from stack.solver.solver import Solver

from ..conftest import picture, tiny_pipe

BEST = (0, 4, 17, 30, 44)


def height(places: tuple[int, ...]) -> float:
    return -float(sum((a - b) ** 2 for a, b in zip(places, BEST, strict=True)))


def test_the_climb_ends_where_no_move_helps() -> None:
    tried, _ = climb(height, (0, 9, 20, 31, 41), 50, 200)
    assert max(tried, key=lambda places: tried[places]) == BEST
    assert len(tried) < 60 and all(value == height(places) for places, value in tried.items())


@pytest.mark.parametrize("trials", [1, 7])
def test_it_stops_at_its_trials(trials: int) -> None:
    calls: list[tuple[int, ...]] = []

    def score(places: tuple[int, ...]) -> float:
        calls.append(places)
        return height(places)

    assert len(climb(score, (0, 9, 20, 31, 41), 50, trials)[0]) == trials == len(calls)


def test_it_stops_when_its_time_is_over() -> None:
    left = iter([True] * 5 + [False] * 100)
    tried, _ = climb(height, (0, 9, 20, 31, 41), 50, 200, more=lambda: next(left))
    assert 1 < len(tried) <= 6


def test_a_place_neither_meets_another_nor_leaves_the_ladder() -> None:
    assert moved((0, 4, 8), 1, 3, 10) == (0, 7, 8) and moved((0, 4, 8), 1, 4, 10) is None
    assert moved((0, 4, 8), 1, -4, 10) is None and moved((0, 4, 8), 2, 2, 10) is None


def test_a_search_leaves_the_best_places_on_the_stack() -> None:
    pipe = tiny_pipe()
    before = picture(pipe, 20, seed=3)
    stack = Stack(pipe, steps=20).solver(places=(0, 2, 4, 6)).cache("svd")
    found = search_places(stack, ["a red ring left of a blue star"], seed=3, trials=8, progress=False)
    assert found.trials == 8 and found.psnr_db > found.start_psnr_db
    assert stack.passes[0] == found.solver == Solver(places=found.solver.places, of=20)
    assert not stack.applied and torch.equal(picture(pipe, 20, seed=3), before)
    with Stack(pipe, steps=20).add(found.solver) as alone:
        assert math.isclose(psnr(picture(alone, 20, seed=3), before), found.psnr_db, abs_tol=1e-3)


def test_weights_stay_unless_places_are_better_without_them() -> None:
    asked = {"prompts": ["a red ring"], "progress": False}
    bare = Stack(tiny_pipe(), steps=20).solver(places=(0, 2, 4, 6), of=20)
    good = fit_solver(bare, rounds=3, **asked)  # type: ignore[arg-type]
    kept = search_places(bare, trials=1, **asked)  # type: ignore[arg-type]
    assert kept.solver == bare.passes[0] == good.solver and kept.psnr_db == kept.start_psnr_db > good.start_psnr_db
    rows = ((0.3, 0.3), (0.3, 0.3, 0.3), (0.3, 0.3, 0.3, 0.3), (0.3, 0.3, 0.3, 0.3))
    bad = Stack(tiny_pipe(), steps=20).add(replace(good.solver, corrections=rows))
    assert search_places(bad, trials=2, **asked).solver.corrections == ()  # type: ignore[arg-type]


def test_ctrl_c_keeps_the_best_places_so_far() -> None:
    calls: list[int] = []

    def score(places: tuple[int, ...]) -> float:
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return height(places)

    tried, interrupted = climb(score, (0, 9, 20, 31, 41), 50, 200)
    assert interrupted and len(tried) == 8 and max(tried.values()) > tried[0, 9, 20, 31, 41]
    calls[:] = [1] * 8
    with pytest.raises(KeyboardInterrupt):
        climb(score, (0, 9, 20, 31, 41), 50, 200)


def test_what_a_search_needs() -> None:
    with pytest.raises(StackError, match=r"add .solver\(steps=6\)"):
        search_places(Stack(tiny_pipe()).cache("svd"), ["a red ring"])
    with pytest.raises(StackError, match="prompts: expected at least one, got none"):
        search_places(Stack(tiny_pipe()).solver(4), [])
    with pytest.raises(StackError, match="trials: expected a whole number of at least 1, got 0"):
        search_places(Stack(tiny_pipe()).solver(4), ["a red ring"], trials=0)
    with pytest.raises(StackError, match="budget: expected"):
        search_places(Stack(tiny_pipe()).solver(4), ["a red ring"], budget=-1.0)
