"""The solver against the samplers whose steps it leaves out: on Gaussian data, where the denoiser is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from stack import StackError
from stack.models.sampler import linear_form
from stack.models.schedule import SigmaSchedule, timetable_of
from stack.solver.numbers import RECENT, corrected, placed_form, recent, step_weights
from stack.solver.places import Places
from stack.solver.scheduler import PlacedSolver, needed_after

from ..samplers import DETERMINISTIC, first_noise, given_to_denoiser

MODES = torch.exp(torch.linspace(-1, 1, 12, dtype=torch.float64)).reshape(1, 12, 1, 1)  # variances
# The signal in a sample, by log signal over noise.
PLAIN: dict[str, Callable[[float], float]] = {
    "FlowMatchEulerDiscrete(shift=3.0)": lambda log_snr: 1 / (1 + math.exp(-log_snr)),
    "DDIM(clip_sample=False, prediction_type=epsilon)": lambda log_snr: (1 + math.exp(-2 * log_snr)) ** -0.5,
    "DPMSolverMultistep(solver_order=2)": lambda log_snr: (1 + math.exp(-2 * log_snr)) ** -0.5,
    "EDMEuler()": lambda log_snr: 1.0,
}


def run(scheduler: Any, x: torch.Tensor, signal: Callable[[float], float]) -> torch.Tensor:
    """The finished sample of Gaussian data from this noise, each mode in units of its size."""
    form, levels = linear_form(scheduler), timetable_of(scheduler, 0).schedule.levels
    for call, t in enumerate(scheduler.timesteps):
        log_snr, estimate = levels[call][1], form.estimates[call]
        given = given_to_denoiser(scheduler, x, t)
        alpha = signal(log_snr) if log_snr > -math.inf else 0.0
        x0 = MODES / (MODES + math.exp(-2 * log_snr)) * x / alpha if alpha else 0 * x
        x = scheduler.step((x0 - estimate.c * given) / estimate.d, t, x, return_dict=False)[0]
    return x / MODES.sqrt()


def off(name: str, steps: int, places: Sequence[int], order: int) -> float:
    """Of the solver at these places, against the sampler on all its steps; relative."""
    own = DETERMINISTIC[name]()
    solver = PlacedSolver(own, Places(len(places), order, tuple(places), steps=steps).plan)
    own.set_timesteps(steps)
    solver.set_timesteps(steps)
    assert solver.places == tuple(places) and len(solver.timesteps) == len(places)
    noise = first_noise(own, MODES.shape)
    exact = run(own, noise, PLAIN[name])
    return float((run(solver, noise, PLAIN[name]) - exact).norm() / exact.norm())


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", PLAIN)
def test_with_a_place_at_every_step_it_is_the_sampler_itself(name: str, order: int) -> None:
    assert off(name, 50, range(50), order) < 1e-5
    assert off(name, 50, [i for i in range(50) if i != 25], order) > 1e-5


@pytest.mark.parametrize("name", PLAIN)
def test_half_the_gap_is_a_quarter_of_the_error(name: str) -> None:
    """At the first order it is half of it. EDM's levels are so dense near the data that more is gained."""
    second, first = ([off(name, 240, range(0, 240, gap), order) for gap in (10, 5)] for order in (2, 1))
    assert 3.6 < second[0] / second[1] < (30 if name == "EDMEuler()" else 4.4), second
    assert 1.9 < first[0] / first[1] < 2.4, first
    assert second[1] < first[1] / 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_line_is_followed_without_error(name: str) -> None:
    """Estimates that are linear in time: the finished sample is that of all steps, whatever the sampler."""
    own = DETERMINISTIC[name]()
    own.set_timesteps(20)
    form, times = linear_form(own), timetable_of(own, 0).schedule.times
    calls = len(form.estimates)
    at = Places(6).on(timetable_of(own, 0).schedule.levels, calls)
    fewer = placed_form(form, at, times)
    clean = np.array(times)
    held = clean.copy()
    held[: at[1]] = clean[0]  # the first estimate alone knows no slope; it is put right at the second
    assert fewer.weights[2:] @ clean[list(at)] == pytest.approx(form.weights[[*at[2:], calls]] @ clean, abs=1e-9)
    assert fewer.weights[1] @ clean[list(at)] == pytest.approx(form.weights[at[1]] @ held, abs=1e-9)
    assert fewer.noise == pytest.approx(form.noise[[*at, calls]])


def test_a_step_keeps_only_the_estimates_that_later_ones_count() -> None:
    own = DETERMINISTIC["FlowMatchEulerDiscrete(shift=3.0)"]()
    own.set_timesteps(50)
    schedule = timetable_of(own, 0).schedule
    _, form = Places(9).plan(schedule, linear_form(own))
    assert [len(needed_after(form, at)) for at in range(9)] == [1, 2, 3, 2, 2, 2, 2, 1, 0]


def test_places_stay_at_their_noise_levels_on_another_ladder() -> None:
    asked = Places(3, asked=(0, 10, 30), steps=40)
    assert asked.on((), 40) == (0, 10, 30) and asked.on((), 20) == (0, 5, 15)
    assert asked.on((), 2) == (0, 1)


def test_where_levels_are_unknown_places_are_even() -> None:
    assert Places(4).on((), 12) == (0, 3, 6, 9) and Places(4).on((), 3) == (0, 1, 2)


def test_two_looks_at_a_level_are_one_place() -> None:
    twice = SigmaSchedule((1.0, 0.8, 0.8, 0.6, 0.6, 0.4, 0.4, 0.2, 0.2))
    assert Places(5).on(twice.levels, 9) == (0, 1, 3, 5, 7)


def test_runs_begin_at_pure_noise_and_end() -> None:
    own = DETERMINISTIC["FlowMatchEulerDiscrete(shift=3.0)"]()
    solver = PlacedSolver(own, Places(3).plan)
    with pytest.raises(StackError, match="asked to begin at step 2"):
        solver.set_begin_index(2)
    with pytest.raises(StackError, match="has made no schedule"):
        solver.step(torch.ones(1), 1.0, torch.ones(1))
    solver.set_timesteps(10)
    x = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16)
    for t in solver.timesteps:
        x = solver.step(x, t, x).prev_sample
    assert x.dtype == torch.bfloat16 and len(own.timesteps) == 1000, "the scheduler itself is left as it was"
    with pytest.raises(StackError, match="has 3 steps, asked for another"):
        solver.step(x, 0.0, x)


@pytest.mark.parametrize("name", PLAIN)
def test_corrections_are_added_to_the_weights_of_every_step(name: str) -> None:
    own = DETERMINISTIC[name]()
    own.set_timesteps(20)
    form, times = linear_form(own), timetable_of(own, 0).schedule.times
    plain = placed_form(form, (0, 5, 9, 13, 17), times)
    rows = [[0.01 * (at + 1), *(0.02 * (at + 1) + 0.001 * i for i in recent(at))] for at in range(5)]
    by = corrected(plain, rows)
    for at, (more, *shares) in enumerate(rows):
        (ratio, before), (now, after) = step_weights(plain, at), step_weights(by, at)
        assert now == pytest.approx(ratio + more, abs=1e-9)
        wanted = before.copy()
        wanted[list(recent(at))] += shares
        assert after == pytest.approx(wanted, abs=1e-9)
    same = corrected(plain, [[0.0] * len(row) for row in rows])
    assert same.weights == pytest.approx(plain.weights, abs=1e-12) and same.noise == pytest.approx(plain.noise)


def test_fitted_weights_keep_no_more_than_their_estimates() -> None:
    own = DETERMINISTIC["FlowMatchEulerDiscrete(shift=3.0)"]()
    own.set_timesteps(50)
    rows = [[0.01] * (1 + len(recent(at))) for at in range(9)]
    _, form = Places(9, asked=tuple(range(0, 45, 5)), steps=50, corrections=rows).plan(
        timetable_of(own, 0).schedule, linear_form(own)
    )
    assert max(len(needed_after(form, at)) for at in range(9)) <= RECENT
