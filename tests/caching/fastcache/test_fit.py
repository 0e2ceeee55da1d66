from __future__ import annotations

import torch

from stack.calibration.maps_fit import STRIDE, MapSums
from stack.runtime.step import StepContext


def context(step: int, branch: str = "main") -> StepContext:
    return StepContext(
        request=1, branch=branch, step=step, steps=20, sigma=1 - step / 20, time=1 - step / 20, shape=(1, 4, 3)
    )


def test_changes_are_measured_over_gaps_of_1_to_stride_steps() -> None:
    bases, gaps = MapSums(), []
    for step in range(12):
        past = bases.past(context(step), "0/image", torch.full((1,), float(step)), torch.full((1,), -float(step)))
        if past is not None:
            assert past[1] == -past[0]
            gaps.append(step - int(past[0]))
    assert gaps == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1] and max(gaps) == STRIDE


def test_requests_branches_and_keys_do_not_meet() -> None:
    bases, one = MapSums(), torch.ones(1)
    assert bases.past(context(0), "0/image", one, one) is None
    assert bases.past(context(1), "0/text", one, one) is None
    assert bases.past(context(1, "uncond"), "0/image", one, one) is None
    assert bases.past(context(0), "0/image", 2 * one, one) is None
    past = bases.past(context(1), "0/image", one, one)
    assert past is not None and past[0] == 2
