"""The compatibility benchmark: what it asks of its rows, and the disturbances it makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compatbench.budgets import COUNTS, budget_targets, fixed_count
from compatbench.contestants import COARSE, IN_PAIRS, METHODS, PAIRS, Naive, as_called, contestants
from compatbench.disturb import Noise, Rounding, rounded
from compatbench.targets import matrix_targets, ratios
from compatbench.variants import variants

from stack import Stack
from stack.compat.noise import Floor

from ..conftest import picture, tiny_pipe

STEPS = 14


def row(variant: str, kind: str, mse: float, **more: Any) -> dict[str, Any]:
    known = {
        "method": "svd",
        "plain": "plain",
        "bound": variant != "2 % noise",
        "psnr": 40.0,
        "each": [40.0] * 3,
        "carried": None,
    }
    return {"variant": variant, "kind": kind, "mse": mse, **known, **more}


ROWS = [
    row("plain", "naive", 2e-4),
    row("plain", "layer", 1e-4, carried=4e-5),
    row("W8A8", "naive", 3e-4),
    row("W8A8", "layer", 1.1e-4, each=[10.0, 43.0, 37.0], carried=5e-5),
    row("W8A8", "reuse", 2e-4),
    row("2 % noise", "naive", 9e-4, method=PAIRS, psnr=20.0),
    row("2 % noise", "layer", 2e-4, method=PAIRS, psnr=25.0),
    row("plain", "layer", 1e-4, method=PAIRS),
]


def test_pairs_are_held_against_the_plain_model_and_against_reuse() -> None:
    first, second = ratios(ROWS)
    assert first["loss over plain"] == pytest.approx(1.1) and first["naive over plain"] == pytest.approx(3.0)
    assert first["loss over reuse"] == pytest.approx(0.55) and second["loss over reuse"] is None
    assert first["loss over the cache's own"] == pytest.approx(0.55) and second["loss over the cache's own"] is None
    # Of +30, -3 and +3 dB of loss the median picture has +3: one that fell to another mode does not decide it.
    assert first["typical over plain"] == pytest.approx(10**0.3)
    assert first["carried over plain"] == pytest.approx(1.25) and second["carried over plain"] is None
    over_plain, over_reuse, breaks = matrix_targets(ROWS)
    assert over_plain.met and over_reuse.met and (over_plain.target, over_reuse.target) == (1.15, 1.0)
    assert breaks.value == 5.0 and breaks.met


def test_budgets_are_kept_and_used() -> None:
    lines = [{"asked": 0.02, "measured": m, "full": 10.0, "fixed": 8.0} for m in (0.019, 0.012, 0.011, 0.03)]
    kept, used, more = budget_targets(lines)
    assert kept.value == 0.75 and not kept.met
    assert used.value == pytest.approx(0.775) and used.met
    assert more.value == 1.25 and not more.met


def test_full_steps_of_fixed_schedules_are_interpolated_by_logarithms() -> None:
    errors = [0.1 / 2**k for k in range(len(COUNTS))]
    assert fixed_count(0.05, errors) == COUNTS[1] and fixed_count(0.2, errors) == COUNTS[0]
    assert fixed_count(0.05 / 2**0.5, errors) == pytest.approx((COUNTS[1] * COUNTS[2]) ** 0.5)
    assert fixed_count(1e-5, errors) == 50


def test_every_method_is_joined_three_ways_and_naively_past_the_plan() -> None:
    asked: list[tuple[str, str]] = []

    def measured(name: str, feature: str) -> Floor:
        asked.append((name, feature))
        return ((1.0, 0.03),)

    by_name = {v.name: contestants(v, lambda name: None, measured) for v in variants("shapes-flux")}
    for name, found in by_name.items():
        assert {(c.method, c.kind) for c in found} >= {(m, k) for m in METHODS for k in ("naive", "layer")}
        assert any(c.method == PAIRS for c in found) == (name in (*COARSE, "plain"))
    assert not asked, "the noise is measured when a stack is put on, not before"
    found = by_name["2 % noise"]
    layered = next(c for c in found if (c.method, c.kind) == (PAIRS, "layer")).put(tiny_pipe()).plan.passes()[-1].policy
    assert asked == [("2 % noise", "blocks")] and layered.noise == ((1.0, 0.03),)
    assert layered.forecast.basis == "newton"
    assert layered.schedule.full_steps == IN_PAIRS["full_steps"]
    stack = Stack(tiny_pipe(), steps=8).add(Naive("svd-published", interval=2, warmup=1))
    assert not stack.plan.findings and stack.plan.passes()[0].policy.site.name == "output"


def test_defaults_are_held_against_themselves_on_the_plain_model() -> None:
    found = [as_called(v) for v in variants("shapes-flux") if v.name in ("plain", "sparse 50 %", "all together")]
    names = ["svd, as called", "taylorseer, as called", "duca, as called"]
    assert [[c.method for c in each] for each in found] == [names] * 3
    stack = found[2][0].put(tiny_pipe())
    assert stack.passes[-1].policy.corrected and len(stack.passes[-1].policy.schedule_for(8).full_steps(8)) == 5


def test_rounding_is_that_of_its_bits_and_comes_off() -> None:
    rows = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    errors = [float((rounded(rows, bits) - rows).norm() / rows.norm()) for bits in (4, 6, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] / errors[1] == pytest.approx(31 / 7, rel=0.1)
    pipe = tiny_pipe()
    before = picture(pipe, STEPS)
    for disturbance in (Rounding(6), Noise(0.02)):
        with Stack(pipe, steps=STEPS).add(disturbance) as stack:
            assert not torch.equal(picture(stack, STEPS), before)
        assert torch.equal(picture(pipe, STEPS), before)
