"""Linears rounded with error feedback, and when they no longer belong to a model."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from stack.core.facts import Facts, Machine
from stack.quant.backends.native import Native
from stack.quant.rounding.calibrated import FeedbackRounding, InputMoments, rounded_with_feedback
from stack.quant.schemes import SCHEMES

from ...passes.test_sparse_attn import FACTS

NF4 = SCHEMES["nf4"]


def rig(bias: bool = True) -> tuple[nn.Linear, InputMoments, torch.Tensor]:
    """A linear with inputs that have a mean, outlier channels and a strong subspace; moments, and other inputs."""
    torch.manual_seed(0)
    mixing = torch.randn(10, 128)

    def draw(count: int) -> torch.Tensor:
        x = torch.randn(count, 10) @ mixing + 0.5 * torch.randn(count, 128) + 2.0
        x[:, :3] *= 20
        return x

    x = draw(2000)
    return nn.Linear(128, 64, bias=bias), InputMoments(x.T @ x / len(x), x.mean(0)), draw(500)


@torch.no_grad()
def error(module: nn.Module, linear: nn.Linear, x: torch.Tensor) -> float:
    return float((module(x) - linear(x)).norm() / linear(x).norm())


def test_feedback_leaves_a_fifth_of_the_error_in_the_same_bytes() -> None:
    linear, seen, x = rig()
    before = linear.weight.detach().clone()
    module, (plain,) = rounded_with_feedback(linear, NF4, seen), Native().convert([linear], NF4)
    assert error(module, linear, x) < error(plain, linear, x) / 5
    assert Native().held_bytes(module) == 64 * (64 + 2 * 4)  # float32 steps, as the linear's dtype
    assert torch.equal(linear.weight, before)


def test_without_a_bias_the_mean_is_rounded_for_as_well() -> None:
    linear, seen, x = rig(bias=False)
    module, (plain,) = rounded_with_feedback(linear, NF4, seen), Native().convert([linear], NF4)
    assert module.bias is None and error(module, linear, x) < error(plain, linear, x) / 3


def test_it_belongs_to_its_weights_and_its_device() -> None:
    made = FeedbackRounding({}, (), "cpu", "1 prompt")

    def stale(**changes: object) -> str:
        facts: Facts = replace(FACTS, machine=Machine("cpu"), **changes)
        return made.stale(facts)

    assert stale() == ""
    assert stale(adapters=("turbo-8",)) == "it was rounded for weights with no adapter, these have turbo-8"
    there = replace(FACTS, machine=Machine("cuda"))
    assert made.stale(there) == "it was rounded on cpu, the model is on cuda"
