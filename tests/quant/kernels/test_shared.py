"""Sharing rounded rows: it happens, and it never leaks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stack.core.facts import machine_of
from stack.quant.kernels import shared as module
from stack.quant.kernels.product import kernel_for
from stack.quant.kernels.rows import Rows, quantize_rows
from stack.quant.kernels.shared import SharedRows
from stack.quant.linears.int8 import Int8Linear, convert_group

HERE = kernel_for(machine_of(torch.device("cpu")))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per tensor that was really rounded."""
    calls: list[int] = []

    def count(x: torch.Tensor) -> Rows:
        calls.append(len(x))
        return quantize_rows(x)

    monkeypatch.setattr(module, "quantize_rows", count)
    return calls


def group(members: int = 3) -> tuple[list[Int8Linear], list[Int8Linear], SharedRows]:
    """A sharing group, and the same linears each on its own."""
    linears = [nn.Linear(48, 32) for _ in range(members)]
    together = convert_group(linears, HERE)
    return together, [Int8Linear(linear, HERE) for linear in linears], together[0].shared


def check(together: list[Int8Linear], alone: list[Int8Linear], x: torch.Tensor) -> None:
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one(x), other(x.clone()))


def test_a_group_rounds_its_input_once_and_then_forgets_it(counted: list[int]) -> None:
    together, _, rows = group()
    x = torch.randn(5, 48)
    for linear in together:
        linear(x)
    assert counted == [5] and not rows.holds


@torch.no_grad()
def test_inputs_are_never_mixed_up() -> None:
    together, alone, _ = group()
    for x in (torch.randn(5, 48), torch.randn(2, 4, 48), torch.randn(1, 48), torch.randn(5, 48)):
        check(together, alone, x)
        check(together, alone, x)


@torch.no_grad()
def test_a_batch_that_changes_halfway() -> None:
    together, alone, _ = group()
    x, y = torch.randn(5, 48), torch.randn(5, 48)
    assert torch.equal(together[0](x), alone[0](x))
    assert torch.equal(together[1](y), alone[1](y))
    assert torch.equal(together[2](x), alone[2](x))


@torch.no_grad()
def test_a_tensor_written_to_after_an_exception_is_rounded_again() -> None:
    together, alone, rows = group()
    x = torch.randn(5, 48)
    together[0](x)  # here the block fails: q has been served, k and v have not
    assert rows.holds
    x.mul_(3).add_(1)
    for i in (1, 2, 0):
        assert torch.equal(together[i](x), alone[i](x.clone()))
    together[0](x)
    rows.clear()
    assert not rows.holds


def test_a_member_called_twice_starts_anew(counted: list[int]) -> None:
    """Memory written to behind torch's back between two passes over the block does not matter either."""
    together, alone, _ = group()
    x = torch.randn(5, 48)
    together[0](x)
    x.numpy()[:] = 7.0
    got = together[0](x)
    assert len(counted) == 2
    assert torch.equal(got, alone[0](x.clone()))


def test_inference_tensors_have_no_version_and_are_not_shared(counted: list[int]) -> None:
    together, alone, _ = group()
    with torch.inference_mode():
        x = torch.randn(5, 48)
        together[0](x)
        x.add_(1)
        assert torch.equal(together[1](x), alone[1](x.clone()))


def test_a_freed_tensor_is_not_mistaken_for_a_new_one() -> None:
    """Without a reference to the input, a new tensor would soon get the old one's address."""
    together, alone, _ = group()
    with torch.no_grad():
        for _ in range(50):
            together[0](torch.randn(5, 48))
            x = torch.randn(5, 48)
            assert torch.equal(together[1](x), alone[1](x.clone()))
