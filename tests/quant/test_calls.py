"""How many operations a step launches where each costs a launch: on tensors without memory, as an accelerator would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from stack import Stack
from stack.quant.linears.weight_only import WeightOnlyLinear
from stack.quant.schemes import SCHEMES

from ..conftest import inputs, tiny_denoiser

BUDGET = 3.0  # times the calls of the model as it is


class Calls(TorchDispatchMode):
    """Counts the operations below it, and answers what the host reads: tensors without memory cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.5
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def calls(denoiser: Any, side: int) -> int:
    """Operations of one call with side x side image tokens."""
    on_meta = {name: tensor.to("meta", torch.bfloat16) for name, tensor in inputs(side=side).items()}
    with Calls() as mode:
        denoiser(**on_meta)
        before = mode.count
        denoiser(**on_meta)
    return mode.count - before


@pytest.mark.parametrize("scheme", ["int8", "int8-weight", "int4-weight", "nf4", "fp8-weight"])
def test_a_quantized_step_stays_within_its_budget(scheme: str, tmp_path: Path) -> None:
    """A loaded model is bare: nothing but its linears is another's."""
    with Stack(tiny_denoiser()).quantize(scheme, backend="native", min_features=64) as stack:
        assert stack.save(tmp_path) >= 11  # of 17: the text stream is too short for int8
    plain, quantized = tiny_denoiser(), tiny_denoiser()
    Stack.load(tmp_path, quantized)
    before = calls(plain.to("meta", torch.bfloat16), 64)
    few, many = (calls(quantized.to("meta", torch.bfloat16), side) for side in (8, 64))
    assert before < few == many < BUDGET * before, (before, few, many)


@pytest.mark.parametrize("scheme", ["int8-weight", "int4-weight", "nf4", "fp8-weight"])
def test_a_large_weight_takes_as_many_as_a_small_one(scheme: str) -> None:
    counts = []
    for width in (64, 1024):
        module = WeightOnlyLinear(nn.Linear(width, width), SCHEMES[scheme]).to("meta")
        with Calls() as mode, torch.no_grad():
            module(torch.empty(5, width, device="meta"))
        counts.append(mode.count)
    assert counts[0] == counts[1] < 30, counts
