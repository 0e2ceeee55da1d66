"""The sentence that a comparison comes to, and the lines behind it, on figures made up for each case."""

from __future__ import annotations

from typing import Any

import pytest

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
        "leave quantize out: it costs 0.3 dB and saves nothing here; the rest is 3.00x as fast as the plain model at "
        "36.3 dB, 2.3 dB above fewer plain steps in the same time",
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
        "use the model as it is: the stack saves no time here (identical pictures at 1.01x)",
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
        "take fewer plain steps instead: 16 steps take the same time and have the same PSNR as the stack",
    ),
    "a useless pass in a stack that loses": (
        [row("all", 36.0, 3.0), row("all-quantize", 36.3, 3.0), WITHOUT_CACHE, control("all-quantize", 38.0, steps=16)],
        "take fewer plain steps instead: 16 steps take the same time and have 1.7 dB more than "
        "the stack without quantize",
    ),
    "a stack that is no faster": (
        [row("all", 36.0, 1.01), row("all-quantize", 37.0, 0.9), control("all", 99.0, steps=50)],
        "use the model as it is: the stack saves no time here (36.0 dB at 1.01x)",
    ),
    "another library that is better": (
        [row("all", 36.0, 3.0), control("all", 30.0), row("theirs", 40.0, 3.5, role="peer", group="peer")],
        "the stack is 3.00x as fast as the plain model at 36.0 dB, 6.0 dB above fewer plain steps in the same time; "
        "theirs is faster and better (40.0 dB at 3.50x)",
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
