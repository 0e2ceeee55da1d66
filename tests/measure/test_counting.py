"""A partly computed step counts as what it computed: in the report, the strip, the table and by work."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stack import Stack
from stack.comparison.loop import Measurement
from stack.comparison.record import Header, build_record
from stack.comparison.rows import Generation, Measured, Row
from stack.comparison.table import HEADINGS, cells
from stack.measure.flops import Work, counted, counting, row_work
from stack.models.derive.wiring import wiring_of
from stack.runtime.report import Report, steps_worth
from stack.runtime.step import ALL, NO_BLOCK, Computed

from ..conftest import inputs, tiny_denoiser, tiny_pipe
from ..passes.test_fastcache import made_up

STEPS = 14
DOUBLE, SINGLE = 2, 4  # blocks


@torch.no_grad()
def loop(method: str, batch: int = 1, double: int = DOUBLE, single: int = SINGLE, **options: Any) -> Report:
    """The report of a loop over a bare denoiser of six blocks."""
    denoiser = tiny_denoiser(double, single)
    with Stack(denoiser, steps=STEPS).cache(method, **options) as stack:
        for step in range(STEPS):
            denoiser(**inputs(1 - step / STEPS, batch=batch))
        return stack.report()


def shares(report: Report) -> list[float]:
    return [round(step.computed.linears, 9) for step in report.steps]


@pytest.mark.parametrize(("front", "back"), [(0, 0), (1, 0), (0, 2), (2, 3)])
def test_blocks_that_always_run_count(front: int, back: int) -> None:
    report = loop("svd", interval=4, warmup=2, front=front, back=back)
    always = round((front + back) / 6, 9)
    full = [step.step for step in report.steps if step.kind == "full"]
    assert full == [0, 1, 5, 9] or full == [0, 1, 5, 9, 13]
    assert shares(report) == [1.0 if step in full else always for step in range(STEPS)]
    assert {step.computed.attention for step in report.steps} == {1.0, (front + back) / 6}
    assert {step.kind for step in report.steps} == {"full", "partial" if always else "cached"}
    worth = len(full) + (STEPS - len(full)) * (front + back) / 6
    assert steps_worth([step.computed for step in report.steps]) == pytest.approx(worth, rel=1e-12)
    assert (f", the work of {worth:.3g} full ones\n" in str(report)) == bool(always)


def test_modules_that_run_on_cached_steps_count() -> None:
    # Per token, in D * D: attention 4 and MLP 8 in double blocks, 3 and 9 in single ones.
    report = loop("pab", interval=3, warmup=1)
    left = (DOUBLE * 8 + SINGLE * 9) / ((DOUBLE + SINGLE) * 12)
    assert set(shares(report)) == {1.0, round(left, 9)}
    cached = next(step for step in report.steps if step.kind != "full")
    assert cached.computed.attention == 0.0 and cached.kind == "partial"
    assert set(shares(loop("fora", interval=3))) == {1.0, 0.0}


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_some_tokens_count_as_their_share_of_the_mlps(ratio: float) -> None:
    for method in ("toca", "duca"):
        report = loop(method, interval=4, warmup=1, ratio=ratio, budget="even")
        kinds = {step.kind for step in report.steps}
        mlps = (DOUBLE * 8 + SINGLE * 9) / ((DOUBLE + SINGLE) * 12)
        conservative = [s.computed.linears for s in report.steps if s.kind == "partial"]
        assert conservative == pytest.approx([ratio * mlps] * len(conservative), rel=0.02) and conservative
        assert all(s.computed.attention == 0.0 for s in report.steps if s.kind != "full")
        assert kinds == ({"full", "partial"} if method == "toca" else {"full", "partial", "cached"})


def test_samples_that_run_count_as_their_share_of_the_batch() -> None:
    report = loop("first-block", batch=4)
    always = 1 / 6
    for cached in range(5):
        assert Computed(always, always).beside(1 - cached / 4).linears == pytest.approx(
            1 - cached / 4 + cached / 4 * always
        )
    possible = {round((4 - cached) / 4 + cached / 4 * always, 9) for cached in range(5)}
    assert set(shares(report)) <= possible
    assert NO_BLOCK.beside(0.25).linears == 0.25 and NO_BLOCK.beside(0.25).rest == 1.0


def test_a_corrector_and_sparse_attention_change_no_count() -> None:
    plain, corrected = (loop("svd", interval=4, corrected=c) for c in (False, True))
    assert shares(plain) == shares(corrected)
    work = Work(linears=800, attention=200, rest=10)
    assert work.step(ALL, density=0.5) == 910 and work.step(Computed(0.5, 0.5), density=0.5) == 10 + 400 + 50
    assert row_work(work, [ALL, NO_BLOCK, Computed(0.5, 0.0)], 0.25) == (10 + 800 + 50) + 10 + (10 + 400)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("svd", {"interval": 4}),
        ("svd", {"interval": 4, "front": 1, "back": 1}),
        ("fora", {"interval": 3}),
        ("pab", {"interval": 3}),
        ("toca", {"interval": 4, "ratio": 0.5}),
        ("duca", {"interval": 4, "ratio": 0.25}),
        ("first-block", {"threshold": 0.3}),
        ("easycache-published", {}),
    ],
)
def test_counted_work_is_the_work_that_the_dispatcher_sees(method: str, options: dict[str, Any]) -> None:
    pipe = tiny_pipe()
    pipe.transformer = tiny_denoiser(DOUBLE, SINGLE)
    call = {"num_inference_steps": STEPS, "output_type": "latent"}
    blocks = wiring_of(pipe.transformer).blocks(pipe.transformer)
    with counting(pipe.transformer, blocks) as work:
        pipe("a red ring", **call)
    with counted(pipe.transformer) as plain:
        pipe("a red ring", **call)
    with Stack(pipe, steps=STEPS).cache(method, **options) as stack, counted(pipe.transformer) as ran:
        stack("a red ring", generator=torch.Generator().manual_seed(0), **call)
        report = stack.report()
    told = row_work(work(), [step.computed for step in report.steps], 1.0) / row_work(work(), [ALL] * STEPS, 1.0)
    assert told == pytest.approx(sum(ran.calls) / sum(plain.calls), abs=0.02)


def test_the_table_says_what_a_partial_step_is_worth() -> None:
    picture, steps = torch.zeros(3, 8, 8), (ALL, Computed(0.25, 0.25), Computed(0.25, 0.25), ALL)
    kinds = ("full", "partial", "partial", "full")
    rows = {
        "base": Measured(Row("base", "base", "base", steps=4), [Generation(picture, 4.0, ("full",) * 4)]),
        "cache": Measured(
            Row("cache", "stack", "alone", "r", ("cache",), 4), [Generation(picture, 2.0, kinds, computed=steps)]
        ),
    }
    work = Work(linears=80, attention=20, rest=0)
    header = Header("m", "cpu", "float32", ("p",), 4, 0, ("r",))
    record = build_record(header, Measurement(rows, 1), work, lambda pictures: None)
    row = record["rows"][1]
    assert row["full_steps"] == 2.5 and row["computed"] == [1.0, 0.25, 0.25, 1.0]
    assert row["flops_speedup"] == pytest.approx(4 / 2.5)
    shown = dict(zip(HEADINGS, cells(row), strict=True))
    assert shown["full steps"] == "2.5 of 4" and shown["by work"] == "1.60x"


def test_fastcache_counts_tokens_and_blocks() -> None:
    stack_maps = made_up()
    report = loop("fastcache", double=1, single=1, maps=stack_maps)
    assert all(0 <= step.computed.attention <= step.computed.linears <= 1 for step in report.steps)
    mean = sum(step.computed.linears for step in report.steps) / STEPS
    assert report.passes["cache"]["block_share"] == pytest.approx(mean, rel=1e-9)
