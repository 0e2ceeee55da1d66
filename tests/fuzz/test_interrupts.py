"""A small part of `python -m tests.fuzz.interrupts`."""

from __future__ import annotations

from .interrupts import run


def test_wherever_it_breaks_off_the_model_is_with_the_stack_or_without_it() -> None:
    placed, wrong = run(count=42, seed=0)
    assert not wrong
    assert min(placed.values()) >= 6, "every action was interrupted"
