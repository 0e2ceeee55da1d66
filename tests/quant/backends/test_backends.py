"""Every backend computes every scheme it does not refuse on this processor, with the same guarantees."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stack.core.errors import StackError
from stack.core.facts import machine_of
from stack.quant.backends import BACKENDS
from stack.quant.backends.base import LibraryLinear
from stack.quant.schemes import SCHEMES

HERE = machine_of(torch.device("cpu"))
RUN = [(s, b) for s in SCHEMES for b in BACKENDS if not BACKENDS[b].refuses(SCHEMES[s], HERE)]
# Gaussian rows and weights: half a step of 127, 15 and 16 levels over a few standard deviations, and e4m3's 3 bits.
LARGEST_ERROR = {"int8": 0.016, "int8-weight": 0.009, "int4-weight": 0.11, "nf4": 0.1, "fp8-weight": 0.03}
# Values and scales over bf16's two bytes, at 512 features in.
LARGEST_SHARE = {"int8": 0.55, "int8-weight": 0.51, "int4-weight": 0.32, "nf4": 0.32, "fp8-weight": 0.51}


def made(scheme: str, backend: str, linear: nn.Linear) -> nn.Module:
    return BACKENDS[backend].convert([linear], SCHEMES[scheme])[0]


def test_these_run_here() -> None:
    expected = {
        "native": {"int8", "int8-weight", "int4-weight", "nf4", "fp8-weight"},
        "torchao": {"int8", "int8-weight", "fp8-weight"},
        "bitsandbytes": {"int8", "nf4"},
        "quanto": {"int8-weight", "int4-weight", "fp8-weight"},
    }
    assert {b: {s for s, other in RUN if other == b} for b in BACKENDS} == expected


@pytest.mark.parametrize(("scheme", "backend"), RUN)
@torch.no_grad()
def test_error_and_measured_bytes(scheme: str, backend: str) -> None:
    linear = nn.Linear(512, 256).to(torch.bfloat16)
    nn.init.normal_(linear.weight, std=0.02)
    before = linear.weight.clone()
    converted, x = made(scheme, backend, linear), torch.randn(2, 40, 512).to(torch.bfloat16)
    got, wanted = converted(x), linear.float()(x.float())
    assert got.dtype == torch.bfloat16 and got.shape == (2, 40, 256)
    error = float((got.float() - wanted).norm() / wanted.norm())
    assert 0.002 < error < LARGEST_ERROR[scheme], error
    assert type(linear.weight) is nn.Parameter and torch.equal(linear.weight.to(torch.bfloat16), before)
    share = BACKENDS[backend].held_bytes(converted) / before.nbytes
    smallest = SCHEMES[scheme].weight_bits / 16
    assert smallest < share <= LARGEST_SHARE[scheme], share


@pytest.mark.parametrize(("scheme", "backend"), RUN)
@torch.no_grad()
def test_layouts_few_rows_none_and_zeros(scheme: str, backend: str) -> None:
    linear = nn.Linear(256, 128).to(torch.bfloat16)
    converted, x = made(scheme, backend, linear), torch.randn(4, 9, 256).to(torch.bfloat16)
    x[1, 3] = 0
    whole = converted(x)
    assert torch.equal(whole[1, 3], linear.bias) and bool(whole.isfinite().all())
    assert converted(x[:, :0]).shape == (4, 0, 128)
    near = {"rtol": 0.02, "atol": 0.02}  # libraries may sum few rows in another order
    turned = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not turned.is_contiguous()
    torch.testing.assert_close(converted(turned), whole, **near)
    torch.testing.assert_close(converted(x[0, 0]), whole[0, 0], **near)
    for rows in (1, 2, 16, 17):
        torch.testing.assert_close(converted(x.flatten(0, 1)[:rows]), whole.flatten(0, 1)[:rows], **near)
    with pytest.raises(StackError, match="expected rows of 256 features"):
        converted(torch.randn(3, 128).to(torch.bfloat16))


@pytest.mark.parametrize(("device", "expected"), [("cpu", 3), ("meta", 32)])
def test_few_rows_are_filled_up_where_the_tensors_are(device: str, expected: int) -> None:
    """A model that is offloaded is converted on the host, and computes elsewhere."""
    seen: list[int] = []
    inner = nn.Linear(16, 8)
    inner.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    module = LibraryLinear(inner, (16, 8), fewest_rows=32).to(device)
    assert module(torch.empty(3, 16, device=device)).shape == (3, 8) and seen == [expected]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_cannot_run_is_refused_with_another_way(backend: str) -> None:
    for name, scheme in SCHEMES.items():
        if reason := BACKENDS[backend].refuses(scheme, HERE):
            assert any(f"'{word}'" in reason for word in (*SCHEMES, *BACKENDS)), (name, reason)
