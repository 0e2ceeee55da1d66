"""The sentence that a comparison comes to, and the lines behind it, on figures made up for each case."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.comparison.differences import Difference
from stack.comparison.intervals import psnr_gain_interval, ratio_interval
from stack.comparison.verdict import margins, verdict


def row(name: str, psnr: float | None, speedup: float | None, **more: Any) -> dict[str, Any]:
    """A row of a stack; its time is that of a base of 10 s."""
    passes = {"all": ["quantize", "cache"], "all-quantize": ["cache"], "all-cache": ["quantize"]}.get(name, [name])
    group = "all" if name == "all" else "left out" if name.startswith("all-") else "alone"
    seconds = None if speedup is None else 10 / speedup
    return {
        "name": name, "group": group, "role": "stack", "same_as": None, "control_of": "", "passes": passes,
        "psnr_db": psnr, "speedup": speedup, "seconds": seconds, "warnings": [], "steps": 50, **more,
    }  # fmt: skip


def control(of: str, psnr: float, steps: int = 12, name: str = "") -> dict[str, Any]:
    more = {"role": "control", "group": "control", "control_of": of, "steps": steps}
    return row(name or f"fewer-steps@{of}", psnr, 4.0, **more)


def record(*rows: dict[str, Any], partial: bool = False) -> dict[str, Any]:
    return {"rows": list(rows), "partial": partial}


WITHOUT_CACHE = row("all-cache", 45.0, 1.3)
CASES: dict[str, tuple[list[dict[str, Any]], str]] = {
    "a pass that saves nothing": (
        [row("all", 36.0, 3.0), row("all-quantize", 36.3, 3.0), WITHOUT_CACHE, control("all-quantize", 34.0)],
        "leave quantize out: it gains nothing that this run can measure (1.00x) and costs 0.3 dB; "
        "the rest is 3.00x as fast as the plain model at 36.3 dB, 2.3 dB above fewer plain steps in the same time",
    ),
    "a pass that slows the stack": (
        [row("all", 36.0, 3.0), row("all-quantize", 36.0, 3.3), WITHOUT_CACHE],
        "leave quantize out: it makes the stack 10% slower; the rest is 3.30x as fast as the plain model at 36.0 dB",
    ),
    "a pass that the plan dropped": (
        [row("all", 36.0, 3.0), row("all-quantize", 36.0, 3.0, same_as="all"), WITHOUT_CACHE, control("all", 30.0)],
        "leave quantize out: it does nothing here; the rest is 3.00x as fast as the plain model at 36.0 dB, "
        "6.0 dB above fewer plain steps in the same time",
    ),
    "a stack that earns its keep": (
        [row("all", 36.0, 3.0), row("all-quantize", 37.0, 2.5), WITHOUT_CACHE, control("all", 30.0), control(
            "all", 33.0, name="fewer-steps-multistep")],
        "the stack is 3.00x as fast as the plain model at 36.0 dB, 3.0 dB above fewer plain steps in the same time",
    ),
    "a stack that changes no picture": (
        [row("all", 99.0, 1.5), row("all-quantize", 99.0, 1.2), WITHOUT_CACHE, control("all", 30.0)],
        "the stack is 1.50x as fast as the plain model with identical pictures, "
        "where fewer plain steps in the same time have 30.0 dB",
    ),
    "a stack that changes no picture and is no faster": (
        [row("all", 99.0, 1.01)],
        "use the model as it is: the stack saves no time that this run can measure (identical pictures at 1.01x)",
    ),
    "a stack that saves less than a step": (
        [row("all", 36.0, 1.3), row("all-quantize", 37.0, 1.1), control("all", 99.0, steps=2)],
        "use the model as it is: the stack saves less than the time of a step here (36.0 dB at 1.30x)",
    ),
    "a stack that loses to fewer steps": (
        [row("all", 36.0, 3.0), row("all-quantize", 37.0, 2.5), WITHOUT_CACHE, control("all", 38.1, steps=16)],
        "take fewer plain steps instead: 16 steps take the same time and have 2.1 dB more than the stack",
    ),
    "a stack that is no better than fewer steps": (
        [row("all", 36.0, 3.0), row("all-quantize", 37.0, 2.5), WITHOUT_CACHE, control("all", 35.95, steps=16)],
        "take fewer plain steps instead: 16 steps take the same time, and the stack is no better as far as "
        "this run can measure",
    ),
    "a useless pass in a stack that loses": (
        [row("all", 36.0, 3.0), row("all-quantize", 36.3, 3.0), WITHOUT_CACHE, control("all-quantize", 38.0, steps=16)],
        "take fewer plain steps instead: 16 steps take the same time and have 1.7 dB more than "
        "the stack without quantize",
    ),
    "a stack that is no faster": (
        [row("all", 36.0, 1.01), row("all-quantize", 37.0, 0.9), control("all", 99.0, steps=50)],
        "use the model as it is: the stack saves no time that this run can measure (36.0 dB at 1.01x)",
    ),
    "another library that is better": (
        [row("all", 36.0, 3.0), control("all", 30.0), row("theirs", 40.0, 3.5, role="peer", group="peer")],
        "the stack is 3.00x as fast as the plain model at 36.0 dB, 6.0 dB above fewer plain steps in the same time; "
        "theirs is faster and better (40.0 dB at 3.50x)",
    ),
    "a stack as good as fewer steps that take longer": (
        [row("all", 36.0, 6.0), row("all-quantize", 37.0, 5.0), WITHOUT_CACHE, control("all", 36.0, steps=16)],
        "the stack is 6.00x as fast as the plain model at 36.0 dB, as near to it as 16 plain steps, "
        "which take 1.50x as long",
    ),
    "a stack that is faster, and worse, than fewer steps": (
        [row("all", 36.0, 6.0), row("all-quantize", 37.0, 5.0), WITHOUT_CACHE, control("all", 38.0, steps=16)],
        "the stack is 6.00x as fast as the plain model at 36.0 dB; 16 plain steps have 2.0 dB more and "
        "take 1.50x as long",
    ),
    "a stack that failed": (
        [row("all", None, None, warnings=["failed: RuntimeError: out of memory"])],
        "no verdict: failed: RuntimeError: out of memory",
    ),
    "nothing measured": ([], "no verdict: no whole stack was measured"),
    "several recipes": (
        [row("mild", 40.0, 2.0, group="all"), row("bold", 30.0, 4.0, group="all"), control("mild", 36.0), control(
            "bold", 29.0)],
        "take mild: 40.0 dB at 2.00x, 4.0 dB above fewer plain steps in the same time, the largest margin of 2 recipes",
    ),
    "several recipes, all worse than fewer steps": (
        [row("mild", 40.0, 2.0, group="all"), row("bold", 30.0, 4.0, group="all"), control("mild", 46.0), control(
            "bold", 39.0)],
        "take fewer plain steps instead: none of the 2 recipes is better in the same time",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "expected"), CASES.values(), ids=CASES.keys())
def test_the_sentence_says_what_the_figures_say(rows: list[dict[str, Any]], expected: str) -> None:
    assert verdict(record(*rows)) == expected
    assert verdict(record(*rows, partial=True)) in (f"so far: {expected}", expected)


def test_the_margin_names_the_better_control() -> None:
    second = control("all", 36.0, name="fewer-steps-multistep")
    (lost,) = margins(record(row("all", 33.5, 4.05), row("cache", 20.0, 4.0), control("all", 30.0), second))
    assert lost == ("all is 2.5 dB BELOW its better control, fewer-steps-multistep: 33.5 dB at 4.05x, 36.0 dB at 4.00x")
    (won,) = margins(record(row("all", 40.0, 4.05), second))
    assert won.startswith("all is 4.0 dB above its better control, fewer-steps-multistep")
    assert margins(record(row("all", 40.0, 4.05))) == []


def timed(name: str, seconds: list[float], psnrs: list[float], **more: Any) -> dict[str, Any]:
    """A row with a time and a PSNR for every prompt, beside a base that takes 10 s for each."""
    middle = sorted(seconds)[len(seconds) // 2]
    errors = [10 ** (-db / 10) for db in psnrs]
    pooled = -10 * math.log10(sum(errors) / len(errors))
    within = ratio_interval(10 / middle, [10.0] * len(seconds), seconds)
    return row(
        name, pooled, 10 / middle, speedup_95=within, seconds_all=seconds, psnr_db_each=psnrs, **more
    )  # fmt: skip


STEADY, UNEVEN = [4.0, 4.04, 3.96], [2.6, 4.0, 5.4]
EVEN_DB, UNEVEN_DB = [36.0, 36.1, 35.9], [34.0, 38.0, 35.5]


def test_a_gain_within_the_interval_is_none() -> None:
    """Without quantize the stack is 3 % slower: steady times show it, uneven ones do not."""
    slower = [seconds * 1.03 for seconds in STEADY]
    whole, without_cache = timed("all", STEADY, EVEN_DB), timed("all-cache", [9.0, 9.1, 8.9], [45.0, 45.0, 45.0])
    kept = verdict(record(whole, timed("all-quantize", slower, EVEN_DB), without_cache))
    assert kept.startswith("the stack is 2.50x as fast")
    loose = [slower[0] * 0.95, slower[1], slower[2] * 1.05]
    left = verdict(record(whole, timed("all-quantize", loose, [db + 0.3 for db in EVEN_DB]), without_cache))
    assert left.startswith(
        "leave quantize out: it gains nothing that this run can measure (1.04x, interval 0.89 to 1.22) and costs 0.3 dB"
    )


def test_a_cost_within_the_interval_is_none() -> None:
    """Half a decibel on each prompt counts; as much in the mean, that has either sign on single prompts, does not."""
    without_cache = timed("all-cache", [9.0, 9.1, 8.9], [45.0, 45.0, 45.0])
    for other, cost in (([36.5, 36.6, 36.4], " and costs 0.5 dB"), ([38.0, 36.1, 35.5], "")):
        rows = timed("all", STEADY, EVEN_DB), timed("all-quantize", STEADY, other), without_cache
        price, _ = verdict(record(*rows)).split("; ")
        assert (
            price
            == f"leave quantize out: it gains nothing that this run can measure (1.00x, interval 1.00 to 1.00){cost}"
        )


def test_a_large_gain_that_may_be_chance_is_named_and_kept() -> None:
    without = timed("all-quantize", [5.2, 5.0, 4.8], EVEN_DB)
    rows = timed("all", UNEVEN, EVEN_DB), without, timed("all-cache", [20.0, 21.0, 19.0], [45.0, 45.0, 45.0])
    found = verdict(record(*rows))
    assert found.startswith(
        "the stack is 2.50x as fast as the plain model at 36.0 dB; more prompts would tell whether "
    )
    assert "saved by quantize (1.25x, interval 0.35 to 4.44)" in found


def test_a_margin_that_may_be_chance_says_so() -> None:
    whole = timed("all", STEADY, UNEVEN_DB)
    rows = whole, timed("fewer-steps", STEADY, [33.0, 33.1, 37.9], role="control", group="control", control_of="all")
    assert verdict(record(*rows)).endswith("1.4 dB above fewer plain steps in the same time "
                                           "(interval -5.7 to 8.5 dB: more prompts would tell)")  # fmt: skip
    assert "fewer-steps (interval -5.7 to 8.5 dB): " in margins(record(*rows))[0]


decibel = st.floats(10, 60)
some_prompts = st.lists(st.tuples(decibel, decibel), min_size=2, max_size=8)


@given(some_prompts)
def test_a_difference_is_its_opposite_seen_from_the_other_side(pairs: list[tuple[float, float]]) -> None:
    one, other = [a for a, _ in pairs], [b for _, b in pairs]
    low, high = psnr_gain_interval(1.5, one, other) or (0.0, 0.0)
    back = psnr_gain_interval(-1.5, other, one)
    assert low <= 1.5 <= high and back == pytest.approx([-high, -low])
    assert psnr_gain_interval(0.0, one, one) == [0.0, 0.0]  # the same on every prompt: no doubt


@given(st.floats(-3, 3), st.floats(0, 3), st.floats(0, 1))
def test_a_difference_counts_in_one_direction_or_none(value: float, half: float, same: float) -> None:
    one = Difference(value, (value - half, value + half), same, same + 1)
    other = Difference(-value, (-value - half, -value + half), same, same + 1)
    assert one.sign == -other.sign
    assert not (one.sign and (abs(value) <= same or half >= abs(value)))
    assert not one.unclear or (one.sign == 0 and value > 1)
    assert Difference(value, None, same, 1.0).sign == (value > same) - (value < -same)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(1, 20), st.floats(1, 20)), min_size=2, max_size=6))
def test_a_pass_is_left_out_only_where_its_gain_is_no_gain(pairs: list[tuple[float, float]]) -> None:
    whole, without = timed("all", [a for a, _ in pairs], [36.0] * len(pairs)), [b for _, b in pairs]
    rows = (
        whole,
        timed("all-quantize", without, [36.0] * len(pairs)),
        timed("all-cache", [99.0] * len(pairs), [45.0] * len(pairs)),
    )
    text = verdict(record(*rows))
    ratio = rows[1]["seconds"] / whole["seconds"]
    low, _ = ratio_interval(ratio, without, whole["seconds_all"]) or (0.0, 0.0)
    if text.startswith("leave quantize out"):
        assert ratio <= 1.02 or (low <= 1 and ratio <= 1.1 + 1e-9)


RECORDS = Path(__file__).parents[2] / "docs" / "compare"


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("compare", "leave quantize out: it gains nothing that this run can measure (1.02x, interval 0.98 to 1.05); "),
        (
            "compare-128",
            "leave quantize out: it gains nothing that this run can measure (1.01x, interval 0.97 to 1.05); ",
        ),
        ("compare-sparse", "leave sparse_attn out: it does nothing here; the rest is 9.50x as fast"),
    ],
)
def test_records_of_the_pages_have_a_verdict(name: str, start: str) -> None:
    assert verdict(json.loads((RECORDS / f"{name}.json").read_text())).startswith(start)
