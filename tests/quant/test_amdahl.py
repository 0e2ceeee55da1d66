"""Shares and rates are measured on the right modules and shapes. Times themselves are not asserted."""

from __future__ import annotations

import time
from collections.abc import Callable

import amdahl
import pytest
import torch
from torch import nn

from stack.core.errors import StackError


class Sleeper(nn.Module):
    """A module that takes a known time."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clock[0] += self.seconds
        return x


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., nn.Sequential]:
    """Sleepers on a clock that only they move, so that shares are exact."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    return lambda *seconds: nn.Sequential(nn.Linear(1, 1), *(Sleeper(clock, s) for s in seconds))


def test_the_share_counts_the_named_modules_only(timed: Callable[..., nn.Sequential]) -> None:
    model = timed(1.0, 2.0, 5.0)
    share = amdahl.linear_share(model, lambda: model(torch.zeros(1, 1)), ["1", "2"])
    assert share == pytest.approx(3 / 8)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_go_away_when_the_call_fails(timed: Callable[..., nn.Sequential]) -> None:
    model = timed(1.0)
    with pytest.raises(ZeroDivisionError):
        amdahl.linear_share(model, lambda: 1 / 0, ["1"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_shapes_are_rows_in_out() -> None:
    model = nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 4))
    shapes = amdahl.linear_shapes(model, lambda: model(torch.randn(2, 5, 8)), ["0", "2"])
    assert shapes == [(10, 8, 24), (10, 24, 4)]


def test_the_rate_weighs_shapes_by_how_often_they_occur(monkeypatch: pytest.MonkeyPatch) -> None:
    """(10 + 3 * 6) seconds of float against (2 + 3 * 1) of int8."""
    times = {8: [10.0, 2.0], 16: [6.0, 1.0]}
    monkeypatch.setattr(amdahl, "_contestants", lambda shape, *_: shape[1])
    monkeypatch.setattr(amdahl, "_time_interleaved", lambda inner, *_: times[inner])
    assert amdahl.gemm_rate([(4, 16, 8), (4, 8, 8), (4, 16, 8), (4, 16, 8)], torch.float32) == pytest.approx(28 / 5)


def test_both_contestants_compute_the_same_product() -> None:
    """The rate would mean nothing if one of them did less: up to row steps, the two outputs are the same linear."""
    linear, int8 = amdahl._contestants((40, 96, 64), torch.float32, torch.device("cpu"))
    wanted, got = linear(), int8()
    step = (wanted * got).sum(1, keepdim=True) / got.square().sum(1, keepdim=True)
    assert float((got * step - wanted).norm() / wanted.norm()) < 0.02
    assert amdahl.gemm_rate([(40, 96, 64)], torch.float32, repeats=2) > 0


def test_nothing_to_time_is_an_error() -> None:
    with pytest.raises(StackError, match="got none"):
        amdahl.gemm_rate([], torch.float32)
    with pytest.raises(StackError, match="got none"):
        amdahl.linear_share(nn.Linear(2, 2), lambda: None, [])
