"""Candidates by name, and the linears that calibration makes of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stack.core.errors import StackError
from stack.quant.backends.native import Native
from stack.quant.linears.corrected import Balanced, Branched
from stack.quant.linears.weight_only import WeightOnlyLinear
from stack.quant.rounding.calibrated import Seen, calibrated, calibrated_bytes
from stack.quant.rounding.candidates import RoundingCandidate

NATIVE = Native()


def rig(bias: bool = True) -> tuple[nn.Linear, Seen, torch.Tensor]:
    """A linear with inputs that have a mean, outlier channels and a strong subspace; statistics, and other inputs."""
    torch.manual_seed(0)
    mixing = torch.randn(10, 128)

    def draw(count: int) -> torch.Tensor:
        x = torch.randn(count, 10) @ mixing + 0.5 * torch.randn(count, 128) + 2.0
        x[:, :3] *= 20
        return x

    x = draw(2000)
    seen = Seen(x.T @ x / len(x), x.mean(0), x.abs().amax(0))
    return nn.Linear(128, 64, bias=bias), seen, draw(500)


def built(name: str, bias: bool = True) -> tuple[nn.Module, float]:
    """The module, and its relative error on other inputs."""
    linear, seen, x = rig(bias)
    candidate = RoundingCandidate(name)
    module = calibrated(linear, candidate, seen, lambda each: NATIVE.convert([each], candidate.scheme)[0])
    with torch.no_grad():
        return module, float((module(x) - linear(x)).norm() / linear(x).norm())


def plain_error(name: str) -> float:
    linear, _, x = rig()
    with torch.no_grad():
        return float(
            (NATIVE.convert([linear], RoundingCandidate(name).scheme)[0](x) - linear(x)).norm() / linear(x).norm()
        )


def test_names_are_read() -> None:
    read = RoundingCandidate("nf4/32+feedback+rank8")
    assert (read.scheme.name, read.scheme.group, read.feedback, read.rank, read.balance) == ("nf4", 32, True, 8, False)
    assert not read.plain and RoundingCandidate("int8").plain and RoundingCandidate("keep").keeps
    assert RoundingCandidate("int8+balance").balance and not RoundingCandidate("int8+balance").plain
    assert RoundingCandidate("nf4/32+feedback").fits(192) and not RoundingCandidate("nf4/128").fits(192)
    assert RoundingCandidate("nf4").fits(100) and RoundingCandidate("keep").fits(7)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int3", "unknown quantization scheme 'int3'"),
        ("nf4+magic", "cannot read the scheme 'nf4\\+magic'"),
        ("nf4 rank8", "cannot read"),
        ("nf4+rank4+rank8", "cannot read"),
        ("int8-weight+feedback", "are for 4-bit weights"),
        ("int8/32", "are for 4-bit weights"),
        ("nf4/33", "a group positive and even"),
        ("nf4+rank0", "a rank has to be positive"),
    ],
)
def test_names_that_cannot_be_read_are_refused(name: str, message: str) -> None:
    with pytest.raises(StackError, match=message):
        RoundingCandidate(name)


def test_feedback_leaves_a_fifth_of_the_error_in_the_same_bytes() -> None:
    module, error = built("nf4+feedback")
    assert isinstance(module, WeightOnlyLinear)
    assert error < plain_error("nf4") / 5
    assert calibrated_bytes(module, NATIVE.held_bytes) == 64 * (64 + 2 * 4)  # float32 steps, as the linear's dtype
    _, without_bias = built("nf4+feedback", bias=False)
    assert without_bias < plain_error("nf4") / 3


def test_a_branch_costs_its_bytes_and_saves_error() -> None:
    (module, error), (_, without) = built("nf4/64+rank8"), built("nf4/64")
    assert isinstance(module, Branched) and error < 0.8 * without
    assert calibrated_bytes(module, NATIVE.held_bytes) == 64 * 72 + 2 * 8 * (64 + 128)


def test_balance_makes_int8_bear_outlier_channels() -> None:
    module, error = built("int8+balance")
    assert isinstance(module, Balanced)
    assert error < 0.5 * plain_error("int8")


def test_everything_together_and_the_linear_is_not_touched() -> None:
    linear, _, _ = rig()
    before = linear.weight.detach().clone()
    module, error = built("nf4/32+feedback+rank4+balance")
    assert isinstance(module, Balanced) and isinstance(module.inner, Branched)
    assert error < plain_error("nf4") / 5
    assert torch.equal(rig()[0].weight, before)
