"""The corrector behind every deterministic sampler: the run is that sampler's own with the interpolated estimates."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack import Stack
from stack.caching.debts import Debts, lagrange
from stack.models.sampler import NO_WEIGHT, LinearSampler, linear_form

from ..models import test_dit
from ..samplers import ADDS_NOISE, CLIPS, DETERMINISTIC
from .toy_sampler import SHAPE, Clean, latents

STEPS = 12
MULTISTEP = [
    "FlowMultistep", "DPMSolverMultistep(solver_order=2)", "DPMSolverMultistep(solver_order=3)", "LMSDiscrete()",
    "DEISMultistep(solver_order=3)", "EDMDPMSolverMultistep()", "IPNDM()", "PNDM(skip_prk_steps=True)",
    "HeunDiscrete()",
]  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore")


def polynomial(order: int) -> Clean:
    factors = torch.randn(order + 1, *SHAPE, generator=torch.Generator().manual_seed(4))
    return lambda u: sum(factor * u**power for power, factor in enumerate(factors))  # type: ignore[return-value]


def off(name: str, full: Collection[int], order: int, **options: Any) -> tuple[float, float]:
    """The largest error behind a full call with the corrector, over the largest latent of the run, and without it.

    Where a call moves the latent by nothing, or not by its own output, nothing is made up for behind it.
    """
    scheduler, clean = DETERMINISTIC[name](), polynomial(order)
    truth = latents(scheduler, STEPS, clean)
    righted, missed = (latents(scheduler, STEPS, clean, [full], o, **options) for o in (order, 0))
    scheduler.set_timesteps(STEPS)
    moves = np.abs(np.diagonal(linear_form(scheduler).weights[1:])) > NO_WEIGHT
    size = max(float(x.abs().max()) for x in truth)
    behind = [call for call in full if moves[call] and call < len(truth)]
    errors = [max(float((run[k] - truth[k]).abs().max()) for k in behind) for run in (righted, missed)]
    return errors[0] / size, errors[1]


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("full", [(0, 1, 2, 6, 9, 10), (0, 1, 2, 7, 8)])
def test_a_straight_estimate_is_followed_whatever_was_forecast(name: str, full: tuple[int, ...]) -> None:
    righted, missed = off(name, full, order=1)
    assert righted < 1e-5 and missed > 1e-2


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(list(DETERMINISTIC)), st.integers(1, 3), st.data())
def test_polynomials_up_to_the_order_are(name: str, order: int, data: st.DataObject) -> None:
    rest = data.draw(st.lists(st.integers(order + 1, STEPS - 2), min_size=1, unique=True).map(sorted))
    calls = (*range(order + 1), *rest)
    # Of two calls with one coordinate the interpolation takes one: here every call has its own.
    righted, _ = off(name, calls, order)
    assert righted < 1e-3  # in fp32, over steps that divide by a small signal


@dataclass(frozen=True, eq=False)
class Forgets(LinearSampler):
    """Settles a debt at once and takes it for done."""

    def settling(self, call: int, debts: Any) -> dict[int, np.ndarray]:
        return {k: factors for k, factors in super().settling(call, debts).items() if k == call}


@dataclass(frozen=True, eq=False)
class Doubles(LinearSampler):
    """Owes what it should be owed at later calls."""

    def settling(self, call: int, debts: Any) -> dict[int, np.ndarray]:
        return {k: factors if k == call else -factors for k, factors in super().settling(call, debts).items()}


@pytest.mark.parametrize("name", MULTISTEP)
@pytest.mark.parametrize("kind", [Forgets, Doubles])
def test_samplers_with_memory_need_what_is_due_later(name: str, kind: type[LinearSampler]) -> None:
    righted, _ = off(name, (0, 1, 4, 6, 7, 10), 1)
    wrong, _ = off(name, (0, 1, 4, 6, 7, 10), 1, form=lambda form: kind(form.estimates, form.weights, form.noise))
    assert righted < 1e-5 and wrong > 100 * righted


@pytest.mark.parametrize("name", ["FlowMultistep", "DDIM(clip_sample=False, prediction_type=epsilon)", "LMSDiscrete()"])
def test_samples_of_a_batch_are_corrected_one_by_one(name: str) -> None:
    scheduler, clean, masks = DETERMINISTIC[name](), polynomial(1), [(0, 1, 5, 8, 10), (0, 1, 2, 6, 7, 10)]
    together = latents(scheduler, STEPS, clean, masks, order=1)
    for row, mask in enumerate(masks):
        alone = latents(scheduler, STEPS, clean, [mask], order=1)
        for x, own in zip(together, alone, strict=True):
            torch.testing.assert_close(x[row : row + 1], own, atol=1e-5, rtol=1e-5)


def test_nothing_is_held_for_long() -> None:
    """Estimates: of the last full call, of the cached ones since, and what is owed within the sampler's memory."""
    scheduler = DETERMINISTIC["FlowMultistep"]()
    scheduler.set_timesteps(40)
    form, debts, held = linear_form(scheduler), Debts(), []
    for call in range(40):
        if call % 5:
            debts.used[call] = torch.ones(1, 1, 2)
        else:
            debts.ran(call, torch.zeros(1, 1, 2), form, [float(c) for c in range(40)], 1)
        debts.owed.pop(call, None)
        held.append(debts.bytes // 8)
    assert max(held[20:35]) <= 1 + 4 + form.memory and held[-1] == 1 + 4 + len(debts.owed)


@pytest.mark.parametrize("refused", [ADDS_NOISE["EulerAncestralDiscrete()"], CLIPS["DDIM()"]])
def test_behind_others_a_cache_runs_without_its_corrector(refused: Any) -> None:
    pipe = test_dit.tiny()
    pipe.scheduler = refused()

    def draw(run: Any) -> torch.Tensor:
        torch.manual_seed(0)  # the pipeline hands its scheduler no generator
        return test_dit.draw(run)

    before = draw(pipe)
    plain, asked = (Stack(pipe, steps=14).cache("svd", interval=4, corrected=c) for c in (False, True))
    with plain:
        without = draw(plain)
    with asked:
        assert torch.equal(draw(asked), without) and not torch.equal(without, before)
    assert torch.equal(draw(pipe), before)


@pytest.mark.parametrize("name", ["HeunDiscrete()", "KDPM2Discrete()", "PNDM()", "EDMEuler()", "UniPCMultistep()"])
def test_a_pipeline_with_this_sampler_has_its_corrector(name: str) -> None:
    pipe, found = test_dit.tiny(), {}
    pipe.scheduler = DETERMINISTIC[name]()
    before = test_dit.draw(pipe)
    for corrected in (False, True):
        with Stack(pipe, steps=14).cache("svd-published", interval=4, corrected=corrected) as stack:
            found[corrected] = float((test_dit.draw(stack) - before).norm())
    assert 0 < found[True] < 0.99 * found[False]
    assert torch.equal(test_dit.draw(pipe), before)


def test_weights_are_those_of_the_polynomial_through_the_nodes() -> None:
    assert lagrange(0.25, [0.0, 1.0]) == [0.75, 0.25]
    assert lagrange(0.5, [0.0, 1.0, 2.0]) == pytest.approx([0.375, 0.75, -0.125])
    assert lagrange(0.5, [0.0, 1.0, 1.0]) == [0.5, 0.5, 0.0]
    assert lagrange(7.0, [0.0]) == [1.0]
