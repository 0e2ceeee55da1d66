from __future__ import annotations

import math

import pytest
import torch
from boundbench.documented import truncation_error
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.compat.subspace import principal_basis, rank_above_noise, rank_by_energy
from stack.core.errors import StackError


def spectrum(kind: str, count: int) -> torch.Tensor:
    """Singular values that make a truncation hard: flat, steep, with a gap, with zeros."""
    k = torch.arange(count, dtype=torch.float32)
    return {
        "flat": torch.ones(count),
        "steep": 10.0 ** (-k),
        "gap": torch.where(k < count // 2, 5.0, 0.05),
        "one": torch.where(k < 1, 3.0, 0.0),
        "slow": 1 / (1 + k),
    }[kind]


def with_spectrum(values: torch.Tensor, rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(rows, len(values), generator=generator))
    right, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator))
    return (left * values) @ right.T


def split(feature: torch.Tensor, basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Principal part F V V^T and residual of a feature."""
    principal = (feature @ basis) @ basis.mT
    return principal, feature - principal


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["flat", "steep", "gap", "one", "slow"]), st.floats(0.05, 1), st.integers(0, 99))
def test_the_projection_error_is_eckart_youngs_and_holds_the_energy(kind: str, energy: float, seed: int) -> None:
    values = spectrum(kind, 12)
    feature = with_spectrum(values, 40, seed)
    basis = principal_basis(feature[None], energy)[0]
    principal, residual = split(feature, basis)
    scale = float(values.norm())
    best = truncation_error(values, basis.shape[1])
    assert float(residual.norm()) == pytest.approx(float(best), abs=2e-3 * scale)
    assert float(principal.square().sum()) >= (energy - 1e-3) * scale**2
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]), atol=1e-4, rtol=0)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 11), st.integers(0, 99))
def test_no_other_subspace_beats_it(rank: int, seed: int) -> None:
    values = spectrum("slow", 12)
    feature = with_spectrum(values, 40, seed)
    other, _ = torch.linalg.qr(torch.randn(12, rank, generator=torch.Generator().manual_seed(seed + 1)))
    _, residual = split(feature, other)
    assert float(residual.norm()) >= float(truncation_error(values, rank)) - 1e-4


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=20), st.floats(0.01, 1))
def test_rank_is_the_smallest_that_holds_the_energy(eigenvalues: list[float], energy: float) -> None:
    values = torch.tensor(sorted(eigenvalues, reverse=True), dtype=torch.float64)
    k = rank_by_energy(values, energy)
    total = float(values.sum())
    assert 1 <= k <= len(values)
    assert float(values[:k].sum()) >= energy * total * (1 - 1e-5)
    if k > 1:
        assert float(values[: k - 1].sum()) < energy * total


def test_wide_features_are_sketched_without_touching_the_random_state() -> None:
    feature = with_spectrum(spectrum("steep", 6), 30, 0)
    wide = torch.cat([feature, torch.zeros(30, 1100)], 1)
    before = torch.get_rng_state()
    basis = principal_basis(wide[None], 0.999)[0]
    assert torch.equal(before, torch.get_rng_state())
    _, residual = split(wide, basis)
    assert float(residual.norm() / wide.norm()) <= math.sqrt(0.001) + 1e-4
    assert basis.shape[1] <= 3


@pytest.mark.parametrize("energy", [0.0, -1.0, 1.1])
def test_bad_energy(energy: float) -> None:
    with pytest.raises(StackError, match=r"\(0, 1\]"):
        rank_by_energy(torch.ones(3), energy)


def test_every_sample_gets_its_own_basis_and_rank() -> None:
    steep, flat = with_spectrum(spectrum("steep", 12), 40, 0), with_spectrum(spectrum("flat", 12), 40, 1)
    together = principal_basis(torch.stack([steep, flat]), 0.8)
    ranks = (together.abs().sum(1) > 0).sum(1).tolist()
    assert ranks == [1, 10]
    for feature, basis in zip((steep, flat), together, strict=True):
        alone = principal_basis(feature[None], 0.8)[0]
        torch.testing.assert_close(split(feature, basis)[0], split(feature, alone)[0])


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.3])
def test_directions_that_drown_in_noise_are_cut(noise: float) -> None:
    generator = torch.Generator().manual_seed(3)
    strong = torch.randn(512, 4, generator=generator) @ torch.linalg.qr(torch.randn(48, 4, generator=generator)).Q.mT
    feature = strong + noise * strong.norm() / strong.numel() ** 0.5 * torch.randn(512, 48, generator=generator)
    assert principal_basis(feature[None], 1.0)[0].shape[1] == 48
    cut = principal_basis(feature[None], 1.0, noise)
    assert cut.shape[2] == 4
    left = strong - (strong @ cut[0]) @ cut[0].mT
    assert float(left.norm() / strong.norm()) < noise


def test_without_noise_nothing_is_cut() -> None:
    feature = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(principal_basis(feature, 0.9), principal_basis(feature, 0.9, 0.0))
    alone = rank_above_noise(torch.linalg.eigvalsh(feature[0].mT @ feature[0]).flip(0), 64, 1.0)
    assert alone == 1  # nothing but noise: one direction is left
