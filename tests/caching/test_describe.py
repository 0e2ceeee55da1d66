"""A cache in words: what is said of full steps is true of them, and no gate is only named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stack.caching.cache import Cache
from stack.caching.contract import GATES
from stack.caching.describe import spacing
from stack.caching.methods import PRESETS

from ..test_plan import FACTS


@pytest.mark.parametrize(
    ("full", "words"),
    [
        ((0, 1, 2, 9, 16, 23), "the first 3, then every 7 steps"),
        ((0, 3, 6, 9), "every 3 steps"),
        ((0, 2, 3), "1 to 2 steps apart"),
        ((0, 1, 2), "the first 3"),
        ((0,), "the first only"),
        ((0, 1, 4, 6), "the first 2, then 2 to 3 steps apart"),
    ],
)
def test_spacing_is_that_of_the_steps(full: tuple[int, ...], words: str) -> None:
    assert spacing(full) == words


def test_presets_with_warm_ups_and_paces_of_their_own() -> None:
    said = {name: Cache(name).describe(FACTS)[0] for name in PRESETS}
    assert said["svd-published"].startswith("svd-published, 9 of 50 steps full (the first 3, then every 7 steps)")
    assert said["svd"].startswith("svd, 9 of 50 steps full (placed by noise level: 0 ")
    assert said["pab-published"].startswith("pab-published, 28 of 50 steps full (the first 6, then every 2 steps)")
    assert "every" not in said["duca-dit-published"] and "steps apart" in said["duca-dit-published"]


def test_full_steps_that_were_moved_are_not_said_to_be_even() -> None:
    moved = Cache("fora-published", switches=(0.5, 0.9))
    assert "25 steps" not in moved.describe(FACTS)[0] and "steps apart" in moved.describe(FACTS)[0]


@pytest.mark.parametrize("name", [name for name in GATES if name != "budget"])
def test_a_gate_says_what_it_looks_at(name: str) -> None:
    preset = next(preset for preset, policy in PRESETS.items() if policy.gate and policy.gate.name == name)
    words = Cache(preset).describe(replace(FACTS, steps=50))[0]
    assert (
        f"steps decided one by one by {GATES[name].looks_at} (gate {name!r})" in words
        and len(GATES[name].looks_at) > 20
    )
