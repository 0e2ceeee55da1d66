"""Fitted weights of a solver: the fit on pictures that are known, and on a pipeline."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from stack import Stack, StackError
from stack.calibration import solver_pictures
from stack.calibration.solver_fit import STEP, fit_solver, fitted, weights_of, with_weights
from stack.calibration.solver_pictures import PrefixRuns, SolverPictures
from stack.measure.metrics import psnr
from stack.recipe import recipe_toml
from stack.solver.solver import Solver

from ..conftest import picture, tiny_pipe

PROMPTS = ["a red ring left of a blue star", "a green circle"]


def made_up(count: int, size: int, bend: float) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Pictures of weights (their columns), and the weights that make the wanted ones."""
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randn(300, size, generator=generator, dtype=torch.float64) for _ in range(count)]
    return columns, torch.randn(size, generator=generator, dtype=torch.float64) * bend


@pytest.mark.parametrize("bend", [0.0, 0.2])
def test_weights_that_are_known_are_found(bend: float) -> None:
    """Also where pictures bend with the weights, and their errors are of several sizes."""
    columns, truth = made_up(3, 6, 0.1)

    def draw(number: int, weights: np.ndarray) -> torch.Tensor:
        line = columns[number] @ torch.from_numpy(weights)
        return (10.0**-number * (line + bend * line**2)).float()

    found = fitted(draw, [draw(i, truth.numpy()) for i in range(3)], np.zeros(6), 8)
    assert found.weights == pytest.approx(truth.numpy(), abs=1e-3)
    assert found.psnr_db > found.start_psnr_db + 30 and found.rounds >= 1


def test_a_round_draws_every_prompt_once_per_weight_and_ends_with_its_time() -> None:
    columns, truth = made_up(2, 5, 0.1)
    asked: list[int] = []

    def draw(number: int, weights: np.ndarray) -> torch.Tensor:
        asked.append(number)
        line = columns[number] @ torch.from_numpy(weights)
        return (line + 0.5 * line**3).float()

    wanted = [draw(i, truth.numpy()) for i in range(2)]
    asked.clear()
    found = fitted(draw, wanted, np.zeros(5), 9, more=iter([True, False]).__next__)
    assert found.rounds == 1 and len(asked) == 2 + 2 * 5 + 2  # the start, the differences, the step


def test_ctrl_c_keeps_the_weights_of_the_rounds_before() -> None:
    columns, truth = made_up(2, 5, 0.1)
    drawn = 0

    def draw(number: int, weights: np.ndarray) -> torch.Tensor:
        nonlocal drawn
        drawn += 1
        if drawn == stop_at:
            raise KeyboardInterrupt
        line = columns[number] @ torch.from_numpy(weights)
        return (line + 0.5 * line**3).float()

    stop_at = 0
    wanted = [draw(i, truth.numpy()) for i in range(2)]
    drawn, stop_at = 0, 2 + 2 * 5 + 2 + 3  # in the second round
    found = fitted(draw, wanted, np.zeros(5), 9)
    assert found.interrupted and found.rounds == 1 and found.psnr_db > found.start_psnr_db and found.weights.any()
    drawn, stop_at = 0, 5  # in the first
    with pytest.raises(KeyboardInterrupt):
        fitted(draw, wanted, np.zeros(5), 9)


def test_pictures_that_no_weight_makes_better_leave_the_weights_alone() -> None:
    """Of two pictures that are wanted the same weight makes one better and the other worse."""

    def draw(number: int, weights: np.ndarray) -> torch.Tensor:
        return torch.full((4,), (-1.0) ** number * float(weights[0]))

    wanted = [torch.full((4,), 0.1), torch.full((4,), 0.1)]
    found = fitted(draw, wanted, np.zeros(1), 3)
    assert (
        not found.interrupted and found.rounds == 0 and not found.weights.any() and found.psnr_db == found.start_psnr_db
    )


def test_a_fit_leaves_better_weights_on_the_stack() -> None:
    pipe = tiny_pipe()
    before = picture(pipe, 20, seed=3)
    stack = Stack(pipe, steps=20).solver(places=(0, 2, 4, 6)).cache("svd")
    found = fit_solver(stack, PROMPTS[:1], seed=3, rounds=2, progress=False)
    assert found.psnr_db > found.start_psnr_db + 3 and 1 <= found.rounds <= 2
    assert stack.passes[0] == found.solver and found.solver.places == (0, 2, 4, 6) and found.solver.of == 20
    assert [len(row) for row in found.solver.corrections] == [2, 3, 4, 4]
    assert not stack.applied and torch.equal(picture(pipe, 20, seed=3), before)
    with Stack(pipe, steps=20).add(found.solver) as alone:
        assert math.isclose(psnr(picture(alone, 20, seed=3), before), found.psnr_db, abs_tol=0.05)
        assert "weights of the steps: fitted to finished pictures" in alone.explain()
    again = fit_solver(Stack(pipe, steps=20).add(found.solver), PROMPTS[:1], seed=3, rounds=1, progress=False)
    assert again.start_psnr_db == pytest.approx(found.psnr_db, abs=0.05) and again.psnr_db >= again.start_psnr_db
    other = replace(found.solver, calibrated_for=("family=other",))
    anew = fit_solver(Stack(pipe, steps=20).add(other), PROMPTS[:1], seed=3, rounds=1, progress=False)
    assert anew.start_psnr_db == pytest.approx(found.start_psnr_db, abs=1e-3), "of another stack: from second order on"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_calls_the_model_only_from_where_it_leaves_the_run_that_is_kept(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four steps the weights, 2, 3, 4 and 4, change 3, 2, 1 and 0 later calls."""
    pipe, calls = tiny_pipe().to(dtype), []
    pipe.transformer.proj_out.register_forward_hook(lambda *_: calls.append(1))
    fit = partial(fit_solver, prompts=PROMPTS, rounds=1, progress=False)
    found = fit(Stack(pipe, steps=20).quantize("int8", min_features=64).solver(places=(0, 2, 4, 6), of=20))
    start, tries = 4 * len(PROMPTS), 3
    few = len(calls) - 20 * len(PROMPTS)
    assert start + 16 * len(PROMPTS) < few <= start + (16 + 3 * tries) * len(PROMPTS)
    calls.clear()
    monkeypatch.setattr(solver_pictures, "PrefixRuns", lambda whole: PrefixRuns(whole=True))
    again = fit(Stack(pipe, steps=20).quantize("int8", min_features=64).solver(places=(0, 2, 4, 6), of=20))
    assert again == found and len(calls) > few + 30 * len(PROMPTS)


def test_places_are_searched_with_the_calls_before_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, calls = tiny_pipe(), []
    pipe.transformer.proj_out.register_forward_hook(lambda *_: calls.append(1))
    search = partial(Stack.search_places, prompts=PROMPTS, trials=9, progress=False)
    found = search(Stack(pipe, steps=20).solver(places=(0, 2, 4, 6), of=20))
    few = len(calls)
    monkeypatch.setattr(solver_pictures, "PrefixRuns", lambda whole: PrefixRuns(whole=True))
    assert search(Stack(pipe, steps=20).solver(places=(0, 2, 4, 6), of=20)) == found
    assert few < len(calls) - few - 9 * len(PROMPTS)


def test_sparse_attention_is_given_every_step() -> None:
    of = partial(SolverPictures.of, what="", prompts=PROMPTS, seed=0, budget=None, call=None)
    assert of(Stack(tiny_pipe(), steps=20).sparse_attn(even_if_slower=True).solver(4)).runs.whole
    assert not of(Stack(tiny_pipe(), steps=20).dense_attn().solver(4)).runs.whole


def test_fitted_weights_hold_for_the_stack_and_the_steps_that_they_were_fitted_on() -> None:
    pipe = tiny_pipe()
    plain = Solver(places=(0, 2, 4, 6), of=20)
    weights = np.linspace(-0.1, 0.1, weights_of(plain))
    fit = with_weights(plain, weights, ("family=flux", "image_tokens=7"))
    made = {}
    for steps in (20, 30):
        for solver in (plain, fit, with_weights(plain, weights, ())):
            with Stack(pipe, steps=steps).add(solver) as stack:
                made[steps, solver.calibrated_for, bool(solver.corrections)] = picture(stack, steps)
                text = stack.explain()
                if solver is fit:
                    assert "its weights were fitted on another stack: " in text and "image_tokens 7, now " in text
                    assert ("steps 20, now 30" in text) == (steps == 30)
    stamp = fit.calibrated_for
    assert torch.equal(made[20, stamp, True], made[20, (), False])
    assert not torch.equal(made[20, (), True], made[20, (), False])
    assert torch.equal(made[30, (), True], made[30, (), False])


def test_fitted_weights_are_left_out_of_a_call_with_another_number_of_steps() -> None:
    pipe = tiny_pipe()
    fit = with_weights(Solver(places=(0, 2, 4, 6), of=20), np.full(13, 0.05), ())
    with Stack(pipe, steps=20).add(fit) as stack:
        other = picture(stack, 30)
        assert stack.report().warnings == [
            "solver: weights fitted on 20 steps, the call had 30: second-order ones are used; fit_solver() again"
        ]
    with Stack(pipe, steps=20).solver(places=(0, 2, 4, 6), of=20) as stack:
        assert torch.equal(picture(stack, 30), other)


@pytest.mark.parametrize("steps", [3, 2, 5])
@pytest.mark.parametrize("through", ["stack", "pipe"])
def test_calls_of_few_steps_leave_later_ones_alone(steps: int, through: str) -> None:
    """Such a call is planned for at its first step, when it has asked the solver for its schedule."""
    pipe = tiny_pipe()
    fitted_at = with_weights(Solver(places=(0, 2, 4, 6), of=20), np.full(13, 0.05), ())
    with Stack(pipe, steps=20).add(fitted_at) as stack:
        before = picture(stack, 20)
        made = picture(stack if through == "stack" else pipe, steps)
        assert len(stack.report().steps) == min(steps, 4)
        assert torch.equal(stack(PROMPTS[0], generator=seeded(), output_type="pt").images, picture_of_20(stack))
        assert torch.equal(picture(stack, 20), before)
    if steps < 4:  # all steps of the scheduler: the solver is the scheduler itself
        torch.testing.assert_close(made, picture(pipe, steps), atol=1e-4, rtol=0)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def picture_of_20(stack: Stack) -> torch.Tensor:
    made: torch.Tensor = stack(PROMPTS[0], num_inference_steps=20, generator=seeded(), output_type="pt").images
    assert len(stack.report().steps) == 4
    return made


@pytest.mark.parametrize(("size", "used"), [(16, True), (24, False), (8, False)])
def test_weights_are_left_out_of_calls_of_another_size(size: int, used: bool) -> None:
    """Those fitted at 16 x 16 pixels: in latents of many more or fewer numbers they would do harm."""
    pipe, made = tiny_pipe(size=24), {}
    plain, call = Solver(places=(0, 2, 4, 6), of=20), {"height": 16, "width": 16}
    fit = fit_solver(Stack(pipe, steps=20).add(plain), PROMPTS[:1], rounds=1, progress=False, call=call).solver
    for solver in (fit, plain):
        with Stack(pipe, steps=20).add(solver) as stack:
            given = {"generator": seeded(), "output_type": "pt", "num_inference_steps": 20}
            made[solver.corrections] = stack(PROMPTS[0], height=size, width=size, **given).images
            said = [text for text in stack.report().warnings if "weights fitted on latents of" in text]
            assert bool(said) == (solver is fit and not used)
    assert torch.equal(*made.values()) != used and fit.latent == 64 * 12


def test_a_run_that_was_broken_off_does_not_keep_its_solver() -> None:
    pipe = tiny_pipe()

    def stop(*_: object) -> dict[str, object]:
        raise KeyboardInterrupt

    with Stack(pipe, steps=20).solver(4) as stack:
        with pytest.raises(KeyboardInterrupt):
            pipe(PROMPTS[0], num_inference_steps=20, callback_on_step_end=stop)
        stack.replace(Solver(6))
        made = picture(stack, 20)
        assert len(stack.report().steps) == 6
    with Stack(pipe, steps=20).solver(6) as stack:
        assert torch.equal(picture(stack, 20), made)


def test_a_recipe_holds_fitted_weights(tmp_path: Path) -> None:
    fit = with_weights(Solver(places=(0, 2, 4, 6), of=20), np.linspace(-0.1, 0.1, 13), ("family=flux",))
    (tmp_path / "mine.toml").write_text(recipe_toml(Stack(tiny_pipe(), steps=20).add(fit).to_recipe()))
    (solver,) = Stack.from_recipe(tmp_path / "mine.toml", tiny_pipe()).passes
    assert solver == fit


def test_what_a_fit_needs() -> None:
    with pytest.raises(StackError, match=r"add .solver\(steps=6\)"):
        fit_solver(Stack(tiny_pipe()).cache("svd"), PROMPTS)
    with pytest.raises(StackError, match="prompts: expected at least one, got none"):
        fit_solver(Stack(tiny_pipe()).solver(4), [])
    with pytest.raises(StackError, match="rounds: expected a whole number of at least 1, got 0"):
        fit_solver(Stack(tiny_pipe()).solver(4), PROMPTS, rounds=0)
    with pytest.raises(StackError, match="rounds: expected a whole number of at least 1, got '2'"):
        fit_solver(Stack(tiny_pipe()).solver(4), PROMPTS, rounds="2")  # type: ignore[arg-type]
    with pytest.raises(StackError, match="expected a pipeline, got a bare denoiser"):
        fit_solver(Stack(tiny_pipe().transformer, steps=8).solver(4), PROMPTS)
    for wanted in ([], [torch.zeros(3, 16, 16)], [None, None]):
        with pytest.raises(StackError, match="wanted: expected a picture of each of 2 prompts"):
            fit_solver(Stack(tiny_pipe()).solver(4), PROMPTS, wanted=wanted)  # type: ignore[arg-type]
    with pytest.raises(StackError, match=r"rows of \[2, 3\] numbers, got rows of \[2, 2\] numbers$"):
        Solver(places=(0, 4), of=20, corrections=((0.0, 0.0), (0.0, 0.0)))
    with pytest.raises(StackError, match=r"numbers without of$"):
        Solver(places=(0, 4), corrections=((0.0, 0.0), (0.0, 0.0, 0.0)))
    with pytest.raises(StackError, match="at least -10"):
        Solver(places=(0,), of=20, corrections=((0.0, 99.0),))
    assert STEP > 2**-8, "a difference is above the rounding of bf16"
