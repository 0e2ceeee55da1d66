"""The rule that keeps attention dense where sparsity would be slower."""

from __future__ import annotations

import pytest

from stack.attention.cost import predicted_speedup, worth_it
from stack.attention.maps import cut
from stack.attention.sparsity import SparsityPolicy
from stack.compat.rules.sparse import MARGIN


def verdict(image: int = 1024, keep: float = 0.5, heads: int = 8, device: str = "cpu") -> tuple[bool, str]:
    return worth_it(image, 16, keep, None, heads, 64, device)


def speedup(image: int, keep: float, heads: int = 3) -> float:
    grid = cut(image, 16, None, "cpu")
    return predicted_speedup(grid, grid.density(keep), heads, 64, "cpu")


KEEPS = (0.25, 0.35, 0.5, 0.75)
# (image tokens, heads): speed of sparse attention, map included, over dense attention at each of KEEPS. fp32, 16 text
# tokens, heads of 64, two AVX2 cores; medians of five interleaved runs.
MEASURED = {
    (576, 3): (1.02, 0.98, 0.87, 0.66),
    (576, 8): (1.22, 1.16, 1.00, 0.70),
    (1024, 3): (1.80, 1.45, 1.24, 0.91),
    (1024, 8): (2.00, 1.53, 1.20, 0.83),
    (1024, 24): (1.91, 1.57, 1.28, 0.91),
    (2304, 3): (2.60, 1.97, 1.46, 0.98),
    (2304, 8): (2.62, 1.97, 1.37, 0.96),
    (4096, 8): (2.71, 1.94, 1.56, 0.99),
}


@pytest.mark.parametrize(("image", "heads"), MEASURED)
def test_decides_as_the_measurements_do(image: int, heads: int) -> None:
    """Sparse where it gained 45 % or more, dense where it gained nothing; in between either is right."""
    for keep, measured in zip(KEEPS, MEASURED[image, heads], strict=True):
        predicted = speedup(image, keep, heads)
        assert predicted == pytest.approx(measured, rel=0.35 if measured > 1.5 else 0.17)
        if not 1.0 < measured < 1.45:
            assert verdict(image, keep, heads)[0] is (measured >= 1.45)


@pytest.mark.parametrize("image", [256, 1024, 4096, 65536])
@pytest.mark.parametrize("heads", [3, 24])
def test_keeping_three_quarters_never_pays(image: int, heads: int) -> None:
    good, why = verdict(image, 0.75, heads)
    assert not good and ("density" in why or "none of which would be dropped" in why)


def test_short_sequences_never_pay() -> None:
    assert verdict(256, 0.25) == (False, "256 image tokens make 4 blocks of 64, none of which would be dropped")
    assert not verdict(576, 0.5, heads=3)[0]
    assert not verdict(20, 0.5)[0]


def test_gain_grows_with_length_and_with_what_is_dropped() -> None:
    lengths = [speedup(n, 0.35) for n in (576, 1024, 2304, 4096)]
    keeps = [speedup(2304, k) for k in (0.75, 0.5, 0.35, 0.25)]
    assert lengths == sorted(lengths) and keeps == sorted(keeps) and keeps[0] < MARGIN < keeps[1]


def test_reasons_carry_figures() -> None:
    good, why = verdict(1024, 0.35)
    assert good and "density 0.39 at 1040 tokens" in why and "measured on 2 CPU cores" in why
    good, why = verdict(1024, 0.5, heads=3)
    assert not good and "under 1.25x it is not worth its error" in why
    assert verdict(keep=1.0) == (False, "keep 1 keeps every block")
    good, why = verdict(4096, 0.25, device="cuda")
    assert not good and why == "4112 tokens, pays from 8192 (published figures, not measured on CUDA)"
    good, why = verdict(16384, 0.25, device="cuda")
    assert good and "not measured on CUDA" in why


def test_on_cuda_short_sequences_are_sparse_only_for_who_asks() -> None:
    shape = (4096, 512, 24, 128, "cuda")
    assert "not measured on CUDA" in SparsityPolicy(0.25).dense_shape(*shape)
    assert SparsityPolicy(0.25, even_if_slower=True).dense_shape(*shape) == ""
