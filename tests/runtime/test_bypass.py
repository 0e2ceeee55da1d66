"""Modules that answer with shapes only."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from stack.caching.sites.bypass import Bypass, alike, shape_only
from stack.core.installer import Installer
from stack.runtime.call import DenoiserCall


def test_a_shape_has_no_memory_and_holds_no_number() -> None:
    first, second = shape_only((torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(4)))
    assert first.shape == (2, 3) and first.dtype == torch.bfloat16 and first.isnan().all()
    assert second.untyped_storage().nbytes() == 4


def test_shapes_dtypes_and_numbers_of_tensors_have_to_agree() -> None:
    x = torch.zeros(2, 3)
    assert alike(x, torch.ones(2, 3)) and alike((x, x), (x, x))
    assert not alike(None, x) and not alike(x, x.double()) and not alike(x, x[:1]) and not alike((x,), (x, x))


def test_a_module_answers_at_once_on_steps_that_skip_it_and_for_its_branch() -> None:
    linear, bypass, install = nn.Linear(3, 2), Bypass(), Installer()
    x, ran = torch.ones(4, 3), list[int]()
    inner = linear.forward
    linear.forward = lambda x: (ran.append(len(x)), inner(x))[1]
    bypass.install([linear], install)

    def through(branch: str, skips: bool, x: torch.Tensor) -> torch.Tensor:
        call = DenoiserCall(partial(linear, x), {})
        return bypass.run(call, lambda call: call.run(), branch, skips)

    made = through("cond", False, x)
    assert torch.equal(made, inner(x)) and ran == [4]
    assert through("cond", True, x).isnan().all() and ran == [4]
    assert torch.equal(through("uncond", True, x), made) and ran == [4, 4]  # nothing is known of this branch
    through("cond", False, x[:1])
    assert through("cond", True, x).shape == (1, 2)  # as it was last
    assert torch.equal(linear(x), made)  # between calls it answers for itself
    install.rollback()
    assert torch.equal(linear(x), made)
