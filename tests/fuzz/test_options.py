"""A few random caches; `python -m tests.fuzz.options` draws many."""

from __future__ import annotations

from .options import run


def test_any_options_are_planned_or_refused() -> None:
    found = run(150, seed=0)
    assert sum(found.values()) == 150 and found["planned"] > 15 and found["refused"] > 60
