"""A small part of every fuzzer, from a fixed seed. The long runs are commands of their own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from . import commands, recipes, saved
from .tally import Tally


@pytest.mark.parametrize(
    ("fuzz", "count"),
    [(recipes.fuzz, 250), (saved.fuzz, 50), (commands.fuzz, 40)],
    ids=["recipes and cards", "saved stacks and LoRA files", "command lines"],
)
def test_nothing_ends_in_a_traceback_or_a_changed_model(fuzz: Callable[[int, int], Tally], count: int) -> None:
    tally = fuzz(count, 19)
    assert tally.faults == []
    assert tally.refused > count / 3 and tally.accepted > count / 20
