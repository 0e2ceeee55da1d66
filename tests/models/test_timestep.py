"""One time for all samples, told without a read where the layout tells it."""

from __future__ import annotations

import pytest
import torch

from stack.models.timestep import same_for_all

from ..reads import CountReads

ALIKE = {
    "a number": torch.tensor(3.0),
    "one": torch.tensor([7]),
    "expanded": torch.tensor([0.5]).expand(4),
    "a column of one": torch.zeros(1, 1),
    "expanded twice": torch.tensor(0.5).expand(3, 2),
    "nothing": torch.zeros(0),
}


@pytest.mark.parametrize("name", ALIKE)
def test_the_layout_tells_it_without_a_read(name: str) -> None:
    with CountReads() as reads:
        assert same_for_all(ALIKE[name])
    assert reads.count == 0


@pytest.mark.parametrize(
    ("timestep", "same"),
    [
        (torch.full((3,), 0.25), True),
        (torch.tensor([1.0, 0.5]), False),
        (torch.tensor([[1.0], [1.0]]), True),
        (torch.tensor([[1.0], [0.5]]).expand(2, 3), False),
        (torch.tensor([500, 500, 499]), False),
        (torch.tensor([float("nan")] * 2), False),
    ],
)
def test_values_are_compared_where_it_does_not(timestep: torch.Tensor, same: bool) -> None:
    with CountReads() as reads:
        assert same_for_all(timestep) is same
    assert reads.count == 1
