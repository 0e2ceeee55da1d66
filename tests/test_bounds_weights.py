"""Bounds of rounded weights hold for the code that rounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.bounds import level_rounding_bound, low_rank_rounding_bound, truncation_error
from stack.quant.formats import NF4_LEVELS, load, store
from stack.quant.schemes import SCHEMES

NF4, LEVELS = SCHEMES["nf4"], torch.tensor(NF4_LEVELS)
kinds = st.sampled_from(["gauss", "outlier", "low rank", "constant", "zero"])


def weights(kind: str, rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=generator)
    return {
        "gauss": w,
        "outlier": w.index_put((torch.tensor([0]), torch.tensor([columns - 1])), torch.tensor(300.0)),
        "low rank": w[:, :2] @ w[:2] + 0.01 * w,
        "constant": torch.full_like(w, 0.3),
        "zero": torch.zeros_like(w),
    }[kind]


@settings(deadline=None, max_examples=60)
@given(kind=kinds, rows=st.integers(2, 40), columns=st.integers(2, 150), seed=st.integers(0, 999))
def test_weights_on_nf4_levels_err_by_half_a_gap_at_most(kind: str, rows: int, columns: int, seed: int) -> None:
    weight = weights(kind, rows, columns, seed)
    stored = store(weight, NF4)
    wide = stored.step.repeat_interleave(NF4.group, 1)[:, :columns]
    error = (load(stored, torch.float32) - weight).abs()
    assert bool((error <= level_rounding_bound(LEVELS, wide) * (1 + 1e-5)).all())


def test_half_a_gap_is_reached() -> None:
    """The widest gap is the one below -0.69: a weight in its middle."""
    weight = torch.tensor([[-1.0, -0.848, 1.0, 0.0]])
    error = (load(store(weight, NF4), torch.float32) - weight).abs().max()
    assert float(error) == pytest.approx(float(level_rounding_bound(LEVELS, torch.tensor(1.0))), rel=0.01)


@settings(deadline=None, max_examples=60)
@given(
    kind=kinds, rows=st.integers(4, 40), columns=st.integers(4, 150), seed=st.integers(0, 999), rank=st.integers(1, 4)
)
def test_a_branch_and_its_rounded_rest_stay_within_the_bound(
    kind: str, rows: int, columns: int, seed: int, rank: int
) -> None:
    weight = weights(kind, rows, columns, seed)
    u, singular, vh = torch.linalg.svd(weight, full_matrices=False)
    branch = (u[:, :rank] * singular[:rank]) @ vh[:rank]
    slack = 1e-5 * float(weight.norm()) + 1e-6
    assert float((weight - branch).norm()) <= float(truncation_error(singular, rank)) + slack
    error = float((branch + load(store(weight - branch, NF4), torch.float32) - weight).norm())
    room = float(low_rank_rounding_bound(singular, rank, LEVELS, NF4.group))
    assert error <= room * (1 + 1e-4) + slack * NF4.group**0.5


def test_the_bound_falls_with_the_rank() -> None:
    singular = torch.tensor([10.0, 3.0, 1.0, 0.0])
    bounds = [float(low_rank_rounding_bound(singular, rank, LEVELS, 64)) for rank in range(4)]
    assert bounds[0] > bounds[1] > bounds[2] > bounds[3] == 0
    assert bounds[1] / bounds[0] == pytest.approx((10 / 110) ** 0.5)
