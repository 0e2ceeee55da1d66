"""Arguments of calls: what is the same object costs nothing, what is another is compared by content."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stack.runtime.conditions import Conditioning
from stack.runtime.residuals import ResidualWatch
from stack.runtime.values import Seen, settled

from ..reads import CountReads


def test_content_is_made_once_while_the_tensors_stay() -> None:
    read, prompt = Conditioning(), torch.ones(2, 3)
    first = read(1, "cond", {"prompt": prompt, "options": {"scale": 1}})
    assert read(1, "cond", {"prompt": prompt, "options": {"scale": 1}}) is first
    assert read(2, "cond", {"prompt": prompt, "options": {"scale": 1}}) is first
    assert read(1, "cond", {"prompt": prompt, "options": {"scale": 2}}) != first
    prompt[0] += 1
    changed = read(1, "cond", {"prompt": prompt, "options": {"scale": 1}})
    assert [name for (name, a), (_, b) in zip(changed, first, strict=True) if a != b] == ["prompt"]
    assert dict(read(1, "cond", {"prompt": prompt[:1]})).keys() == {"prompt"}


def test_none_is_as_good_as_left_out_and_order_is_no_matter() -> None:
    read = Conditioning()
    first = read(1, "cond", {"a": 1, "b": "x"})
    assert read(1, "cond", {"b": "x", "guidance": None, "a": 1}) == first
    assert (
        read(1, "cond", {"b": "x", "hidden_states": torch.ones(1), "timestep": 3, "return_dict": True, "a": 1}) == first
    )
    assert read(1, "cond", {"b": "x"}) == (("b", (str, "x")),)


def test_nothing_is_read_from_the_device_while_the_objects_stay() -> None:
    read, given = Conditioning(("residuals",)), {"a": torch.ones(3), "b": {"embeds": [torch.ones(2)], "scale": 0.5}}
    with CountReads() as reads:
        for _ in range(4):
            read(1, "cond", given)
        assert reads.count == 0
        for _ in range(4):
            read(1, "cond", {**given, "residuals": [torch.ones(5)]})
        assert reads.count == 3  # one for each step but the first


VALUES: list[tuple[Any, Any]] = [
    ([1.0, 0.5], [1.0, 0.25]),
    ([[1], [2]], [[1, 2]]),
    ({"a": 1}, {"b": 1}),
    ({"a": [torch.ones(2)]}, {"a": [torch.zeros(2)]}),
    ((1, 2), [1, 2]),
    (1, True),
    (torch.ones(2), torch.ones(2, dtype=torch.bfloat16)),
    (torch.ones(2, 1), torch.ones(1, 2)),
    (np.ones(2), np.zeros(2)),
    (torch.float32, torch.bfloat16),
    (object(), object()),
    ({1}, {1}),  # a set has no hash: it is itself and nothing else
]


@pytest.mark.parametrize(("value", "other"), VALUES)
def test_values_are_told_apart(value: Any, other: Any) -> None:
    seen = Seen.of(value)
    assert settled(value) == settled(value) == seen.settled != settled(other)
    assert not seen.still(other)
    assert seen.still(value) == (not isinstance(value, np.ndarray))


def changed_list(value: list[Any]) -> None:
    value[1] = 0.25


def changed_tensor(value: list[Any]) -> None:
    value[2].mul_(2)


def changed_dictionary(value: list[Any]) -> None:
    value[3]["mask"] = None


def changed_array(value: list[Any]) -> None:
    value[4][0] = 7


@pytest.mark.parametrize("change", [changed_list, changed_tensor, changed_dictionary, changed_array])
@pytest.mark.parametrize("inference", [False, True])
def test_a_change_in_place_is_seen(change: Any, inference: bool) -> None:
    with torch.inference_mode(inference):
        value = [0.5, 0.5, torch.ones(3), {"mask": 1}, np.ones(2)]
        seen = Seen.of(value)
        change(value)
        assert not seen.still(value) and seen.settled != settled(value)


def walked(scales: list[float], drift: float) -> list[int]:
    """How often residuals of these scales, drifting from step to step, are taken to have jumped."""
    watch, generator = ResidualWatch(), torch.Generator().manual_seed(0)
    start, end = (torch.randn(2, 40, 8, generator=generator) for _ in range(2))
    found = []
    for step, scale in enumerate(scales):
        *_, jumps = watch(1, "main", [scale * torch.lerp(start, end, drift * step)])
        found.append(jumps)
    return found


@pytest.mark.parametrize("drift", [0.0, 0.02, 0.05])
def test_residuals_that_drift_have_not_jumped(drift: float) -> None:
    assert walked([1.0] * 16, drift) == [0] * 16


@pytest.mark.parametrize("drift", [0.0, 0.02])
@pytest.mark.parametrize("to", [0.0, 0.5, 0.7, 1.5, -1.0])
def test_residuals_of_another_scale_have_jumped_once(to: float, drift: float) -> None:
    assert walked([1.0] * 6 + [to] * 6, drift) == [0] * 6 + [1] * 6


def test_residuals_that_begin_have_jumped_and_another_request_compares_nothing() -> None:
    assert walked([0.0] * 3 + [1.0] * 3, 0.0) == [0] * 3 + [1] * 3
    watch = ResidualWatch()
    assert [watch(request, "main", [scale * torch.ones(4)])[-1] for request, scale in enumerate([1, 5, 0, 2])] == [
        0
    ] * 4


def test_number_and_shapes_of_residuals_count() -> None:
    watch, one = ResidualWatch(), torch.ones(1, 4, 2)
    first = watch(1, "main", [one, one])
    assert watch(1, "main", [one, one]) == first
    assert watch(1, "main", [one]) != first and watch(1, "main", (one, one[:, :2])) != first
