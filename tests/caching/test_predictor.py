from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.caching.predictor import Gains, SubspacePredictor
from stack.errors import StackError

N, D = 24, 16


def line(times: list[float], start: torch.Tensor, slope: torch.Tensor) -> list[torch.Tensor]:
    return [start + t * slope for t in times]


def feeding(predictor: SubspacePredictor, times: list[float], features: list[torch.Tensor]) -> SubspacePredictor:
    for time, feature in zip(times, features, strict=True):
        predictor.update(feature, time)
    return predictor


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.05, 1), min_size=3, max_size=5, unique=True), st.integers(0, 99))
def test_gain_one_continues_a_straight_line_over_uneven_gaps(times: list[float], seed: int) -> None:
    times = sorted(times, reverse=True)
    gaps = [a - b for a, b in pairwise(times)]
    if min(gaps) < 1e-2:
        return
    generator = torch.Generator().manual_seed(seed)
    start, slope = torch.randn(2, 1, N, D, generator=generator, dtype=torch.float64)
    predictor = feeding(SubspacePredictor(0.85, Gains(1, 1), 0), times, line(times, start, slope))
    torch.testing.assert_close(predictor.predict(0.0), start, rtol=1e-6, atol=1e-6)


def test_the_published_split_predicts_the_principal_part_and_reuses_the_residual() -> None:
    torch.manual_seed(0)
    first = torch.randn(1, N, D, dtype=torch.float64) * torch.linspace(4, 0.1, D)
    second = first + torch.randn(1, N, D, dtype=torch.float64) * 0.3
    predictor = feeding(SubspacePredictor(0.8, Gains(1, 0), 0), [1.0, 0.8], [first, second])
    basis = predictor.basis
    assert basis is not None and 1 <= basis.shape[-1] < D
    got = predictor.predict(0.7)
    onto = basis[0] @ basis[0].T
    expected_principal = (second + (second - first) / 0.2 * 0.1) @ onto
    torch.testing.assert_close(got @ onto, expected_principal, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got - got @ onto, second - second @ onto, rtol=1e-4, atol=1e-5)


def test_no_gain_is_plain_reuse_and_needs_no_basis() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 1, N, D)
    predictor = feeding(SubspacePredictor(0.85, Gains(0, 0), 0), [1.0, 0.9], [first, second])
    assert torch.equal(predictor.predict(0.1), second)
    assert predictor.basis is None


def test_before_a_second_full_step_it_reuses() -> None:
    feature = torch.randn(1, N, D)
    predictor = feeding(SubspacePredictor(0.85, Gains(1, 1), 0), [1.0], [feature])
    assert torch.equal(predictor.predict(0.5), feature)


def test_beta_averages_velocities() -> None:
    zero, one, three = torch.zeros(1, N, D), torch.ones(1, N, D), torch.full((1, N, D), 4.0)
    predictor = feeding(SubspacePredictor(0.85, Gains(1, 1), 0.25), [1.0, 0.9, 0.8], [zero, one, three])
    # Velocities -10 and -30 per unit time; 0.25 of the old, 0.75 of the new: -25.
    torch.testing.assert_close(predictor.predict(0.7), torch.full((1, N, D), 6.5), rtol=1e-5, atol=1e-5)


def test_bytes_are_those_of_the_tensors_held() -> None:
    feature = torch.randn(1, N, D)
    predictor = SubspacePredictor(0.85, Gains(1, 1), 0)
    assert predictor.bytes == 0
    feeding(predictor, [1.0], [feature])
    assert predictor.bytes == N * D * 4
    feeding(predictor, [0.9], [feature + 1])
    assert predictor.bytes == 2 * N * D * 4


def test_predicting_from_nothing_is_an_error() -> None:
    with pytest.raises(StackError, match="no full step"):
        SubspacePredictor(0.85, Gains(), 0).predict(0.5)


@pytest.mark.parametrize("gains", [(-0.1, 0.0), (1.0, 2.5)])
def test_gains_out_of_range(gains: tuple[float, float]) -> None:
    with pytest.raises(StackError, match=r"\[0, 2\]"):
        Gains(*gains)
