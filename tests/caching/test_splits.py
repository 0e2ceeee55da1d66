"""Splits by hand: which numbers are principal, and what is left of a difference under noise."""

from __future__ import annotations

import math

import pytest
import torch

from stack.caching.splits import ChannelBasis, TokenBand
from stack.core.errors import StackError

# Two tokens of three channels; singular values 3, 2 and 0: shares of the energy 9/13 and 4/13.
FEATURE = torch.tensor([[[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]]])


@pytest.mark.parametrize(("energy", "rank"), [(0.5, 1), (0.69, 1), (0.7, 2), (1.0, 2)])
def test_the_basis_has_as_many_directions_as_the_energy_asks_for(energy: float, rank: int) -> None:
    split = ChannelBasis(energy)
    split.fit(FEATURE)
    expected = torch.zeros(1, 2, 3)
    expected[0, 0, 0] = 3.0
    expected[0, 1, 1] = 2.0 if rank == 2 else 0.0
    torch.testing.assert_close(split.principal(FEATURE), expected)
    assert split.bytes == 3 * rank * 4


def test_a_basis_of_the_request_stays_and_a_warm_one_turns() -> None:
    other = torch.tensor([[[0.0, 3.0, 0.0], [2.0, 0.0, 0.1]]])
    still, warm = ChannelBasis(0.5), ChannelBasis(0.5, "warm")
    for split in (still, warm):
        split.fit(FEATURE)
        split.fit(other)
    assert still.basis is not None and warm.basis is not None
    torch.testing.assert_close(still.basis[0, :, 0].abs(), torch.tensor([1.0, 0.0, 0.0]))
    # One iteration from (1, 0, 0): rows^T rows e_0 = 2 (2, 0, 0.1).
    torch.testing.assert_close(warm.basis[0, :, 0].abs(), torch.tensor([2.0, 0.0, 0.1]) / math.hypot(2, 0.1))


def test_a_basis_found_offline_is_used_from_the_first_step() -> None:
    split = ChannelBasis(1.0, found=torch.tensor([[0.0], [0.0], [1.0]]))
    split.fit(FEATURE)
    assert torch.equal(split.principal(FEATURE), torch.zeros(1, 2, 3))
    assert torch.equal(split.principal(torch.ones(1, 1, 3)), torch.tensor([[[0.0, 0.0, 1.0]]]))


def test_a_basis_is_found_anew_for_another_batch() -> None:
    split = ChannelBasis(0.5)
    split.fit(FEATURE.repeat(2, 1, 1))
    first = split.basis
    split.fit(FEATURE.repeat(3, 1, 1))
    assert first is not None and split.basis is not None and (len(first), len(split.basis)) == (2, 3)


def test_every_coefficient_is_shrunk_by_its_own_power() -> None:
    """A change of size 4 in the first direction and of size 0.2 in the second, noise of variance 0.01 in each."""
    tokens = 20_000
    split = ChannelBasis(1.0, found=torch.eye(3)[:, :2])
    split.fit(torch.ones(1, tokens, 3))
    signs = torch.where(torch.arange(tokens) % 2 == 0, 1.0, -1.0)
    difference = torch.stack([4 * signs, 0.2 * signs, 0.05 * signs], -1)[None]
    principal, residual = split.denoised(difference, torch.tensor([0.01]))
    loud = 0.01 * (1 + 5 * math.sqrt(2 / tokens))
    gains = torch.tensor([1 - loud / 16, 1 - loud / 0.04, 0.0])
    torch.testing.assert_close(principal, difference * gains)
    assert torch.equal(residual, torch.zeros_like(residual))  # 0.0025 / 3 per element is below 0.01 / 3


def test_a_band_keeps_the_mean_and_nothing_else_at_its_smallest() -> None:
    split = TokenBand(0.1, (2, 2))
    feature = torch.tensor([[[1.0], [2.0], [3.0], [6.0]]])
    split.fit(feature)
    torch.testing.assert_close(split.principal(feature), torch.full((1, 4, 1), 3.0))
    assert split.bytes == 2 * 2 * 2 * 4
    whole = TokenBand(1.0, (2, 2))
    whole.fit(feature)
    torch.testing.assert_close(whole.principal(feature), feature)


def test_the_bands_of_a_difference_have_one_gain_each() -> None:
    """The mean over 4 tokens, a quarter of the band, is far above the noise; what is left is below it."""
    width = 50_000
    split = TokenBand(0.5, (2, 2))  # ceil(0.5 x 2) = 1 frequency of 2 per axis
    signs = torch.where(torch.arange(width) % 2 == 0, 1.0, -1.0)
    mean, rest = 2 * signs, torch.tensor([0.1, -0.1, -0.1, 0.1])
    difference = mean.expand(1, 4, width) + rest[None, :, None]
    split.fit(difference)
    low, high = split.denoised(difference, torch.tensor([0.04]))
    loud = 0.25 * 0.04 * (1 + 5 * math.sqrt(2 / width))
    torch.testing.assert_close(low, mean.expand(1, 4, width) * (1 - loud / 4), rtol=1e-4, atol=1e-4)
    assert torch.equal(high, torch.zeros_like(high))  # power 0.01 against 0.75 x 0.04


@pytest.mark.parametrize("split", [ChannelBasis(0.9), TokenBand(0.5, (2, 2))])
def test_nothing_is_projected_before_a_full_step(split: ChannelBasis | TokenBand) -> None:
    with pytest.raises(StackError, match="no full step has run in this request"):
        split.principal(torch.zeros(1, 4, 3))
    assert split.bytes == 0


def test_values_out_of_range_are_named() -> None:
    with pytest.raises(StackError, match="life of the basis"):
        ChannelBasis(0.9, "forever")
    with pytest.raises(StackError, match=r"cutoff must be in \(0, 1\], got 0"):
        TokenBand(0)
