"""The estimator of random part and bias recovers a split that is known."""

from __future__ import annotations

import pytest
import torch

from stack.calibration.quant.noise import ErrorSplit, errors_of, split_errors
from stack.core.errors import StackError


def synthetic(bias: float, random: float, calls: int, neighbours: int, size: int, seed: int) -> ErrorSplit:
    """Features of norm near 1 with errors of these relative sizes."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> torch.Tensor:
        return torch.randn(size, generator=generator) / size**0.5

    measured = []
    for _ in range(calls):
        shared, plain = bias * draw(), [draw() for _ in range(neighbours)]
        measured.append(errors_of(plain, [f + shared + random * draw() for f in plain]))
    return split_errors(measured)


@pytest.mark.parametrize(("bias", "random"), [(0.01, 0.01), (0.012, 0.003), (0.002, 0.02), (0.0, 0.01), (0.01, 0.0)])
def test_a_known_split_is_recovered_within_3_percent(bias: float, random: float) -> None:
    found = synthetic(bias, random, calls=12, neighbours=4, size=4096, seed=1)
    whole = (bias**2 + random**2) ** 0.5
    assert found.total == pytest.approx(whole, rel=0.03)
    assert found.bias == pytest.approx(bias, rel=0.03, abs=0.06 * whole)
    assert found.random == pytest.approx(random, rel=0.03, abs=0.06 * whole)
    assert found.random**2 + found.bias**2 == pytest.approx(found.total**2)


def test_the_same_input_twice_is_all_bias() -> None:
    feature, error = torch.randn(100), torch.randn(100)
    found = split_errors([errors_of([feature] * 3, [feature + error] * 3)])
    assert found.random == pytest.approx(0, abs=1e-3 * found.total)
    assert found.bias == pytest.approx(float(error.norm() / feature.norm()), rel=1e-5)
    assert found.uncertainty == pytest.approx(0, abs=1e-6)


def test_the_stated_uncertainty_covers_the_truth() -> None:
    """Of 40 estimates from little data, most lie within two of their own standard errors, and it is not overstated."""
    bias = 0.01
    found = [synthetic(bias, 0.02, calls=4, neighbours=4, size=400, seed=s) for s in range(40)]
    off = torch.tensor([(f.bias - bias) / f.uncertainty for f in found])
    assert float((off.abs() < 2).float().mean()) >= 0.8
    assert 0.5 < float(off.std()) < 2


def test_a_zero_feature_has_no_error() -> None:
    nothing = [torch.zeros(4)] * 2
    assert split_errors([errors_of(nothing, nothing)]) == ErrorSplit(0, 0, 0, 0)


def test_one_neighbour_tells_nothing() -> None:
    with pytest.raises(StackError, match="two or more neighbours"):
        errors_of([torch.ones(3)], [torch.ones(3)])
    with pytest.raises(StackError, match="at least one call"):
        split_errors([])
