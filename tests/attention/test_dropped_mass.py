"""The error of leaving keys out is the dropped softmax mass times a distance between two means of the values."""

from __future__ import annotations

import pytest
import torch
from boundbench.documented import hoeffding_margin
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.attention.flex import Flex
from stack.attention.gathered import gather_attention
from stack.attention.kernels import dense, sparse_attention
from stack.attention.maps import Grid, block_map, keep_mask, mass_map
from stack.attention.output_error import error_map
from stack.attention.producers import PRODUCERS, sample_of
from stack.attention.sparse_attn import SparseAttention
from stack.bounds import dropped_mass_bound

from ..test_plan import FACTS

GRID = Grid(text=3, image=48, key=8, group=1)


def scene(seed: int, sharpness: float, outlier: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random (1, S, 2, 4) queries, keys and values in fp64; one value in every image block is a huge outlier."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, GRID.tokens, 2, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    v[:, GRID.text :: GRID.key] *= outlier
    return sharpness * q, k, v


def dropped_mass(q: torch.Tensor, k: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact attention weights (1, H, S, S) and, per query (1, H, S), the share of them the map leaves out."""
    weights = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / q.shape[-1] ** 0.5).softmax(-1)
    return weights, (weights * ~keep_mask(kept, GRID)).sum(-1)


draws = given(
    seed=st.integers(0, 10_000),
    sharpness=st.sampled_from([0.0, 0.3, 1.0, 5.0, 30.0]),
    outlier=st.sampled_from([1.0, 1e3, -1e6]),
    keep=st.sampled_from([0.1, 0.34, 0.5, 0.9]),
    adversarial=st.booleans(),
    producer=st.sampled_from(list(PRODUCERS)),
    by=st.sampled_from(["share", "mass", "error"]),
)


def a_map(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keep: float, adversarial: bool, producer: str, by: str
) -> torch.Tensor:
    """The map, or the worst one: the blocks with the *smallest* scores. Of as many blocks, as much mass or error."""
    shares = PRODUCERS[producer](-q if adversarial else q, k, GRID)
    if by == "error":
        return error_map(q, k, v, sample_of(q, k, GRID), shares, GRID, 1 - keep)[0]
    return mass_map(shares, GRID, 1 - keep) if by == "mass" else block_map(shares, GRID, keep)


@settings(deadline=None, max_examples=40)
@draws
def test_error_is_within_the_bound(
    seed: int, sharpness: float, outlier: float, keep: float, adversarial: bool, producer: str, by: str
) -> None:
    q, k, v = scene(seed, sharpness, outlier)
    kept = a_map(q, k, v, keep, adversarial, producer, by)
    _, mass = dropped_mass(q, k, kept)
    error = (gather_attention(q, k, v, kept, GRID) - dense(q, k, v)).norm(dim=-1).transpose(1, 2)
    radius = (v - v.mean(1, keepdim=True)).norm(dim=-1).amax(1)[..., None]
    assert (error <= dropped_mass_bound(mass, radius) + 1e-10 * radius).all()


@settings(deadline=None, max_examples=40)
@draws
def test_error_of_what_runs_is_within_the_bound(
    seed: int, sharpness: float, outlier: float, keep: float, adversarial: bool, producer: str, by: str
) -> None:
    """`sparse_attention` also blends the dropped blocks' means back in: no worse than leaving them out may be."""
    q, k, v = scene(seed, sharpness, outlier)
    kept = a_map(q, k, v, keep, adversarial, producer, by)
    _, mass = dropped_mass(q, k, kept)
    error = (sparse_attention(q, k, v, kept, GRID, Flex()) - dense(q, k, v)).norm(dim=-1).transpose(1, 2)
    radius = (v - v.mean(1, keepdim=True)).norm(dim=-1).amax(1)[..., None]
    assert (error <= dropped_mass_bound(mass, radius) + 1e-6 * radius).all()  # its log-sum-exp is float32


@settings(deadline=None, max_examples=40)
@draws
def test_error_is_the_mass_times_the_distance_of_two_means(
    seed: int, sharpness: float, outlier: float, keep: float, adversarial: bool, producer: str, by: str
) -> None:
    """o - o_S = delta (vbar_dropped - o_S): the identity behind the bound."""
    q, k, v = scene(seed, sharpness, outlier)
    kept = a_map(q, k, v, keep, adversarial, producer, by)
    weights, mass = dropped_mass(q, k, kept)
    out = gather_attention(q, k, v, kept, GRID).transpose(1, 2)
    from_dropped = (weights * ~keep_mask(kept, GRID)) @ v.transpose(1, 2)  # delta * vbar_dropped
    difference = dense(q, k, v).transpose(1, 2) - out
    scale = v.abs().max()
    torch.testing.assert_close(difference / scale, (from_dropped - mass[..., None] * out) / scale, atol=1e-10, rtol=0)


def test_the_bound_is_reached() -> None:
    """Kept values at one end, dropped values at the other, half the mass each: error and bound are equal."""
    grid = Grid(text=0, image=16, key=8, group=1)
    q = k = torch.zeros(1, 16, 1, 2, dtype=torch.float64)
    v = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat_interleave(8)[None, :, None, None].expand(1, 16, 1, 2)
    error = gather_attention(q, k, v, torch.eye(2, dtype=torch.bool)[None, None], grid) - dense(q, k, v)
    bound = dropped_mass_bound(torch.tensor(0.5, dtype=torch.float64), v[0, 0, 0].norm())
    torch.testing.assert_close(error.norm(dim=-1), bound.expand(1, 16, 1))


def test_the_margin_fails_no_more_often_than_it_says_and_is_not_loose() -> None:
    """Queries of mass 0 or 1, half of each, mixed within every run: the least favourable case."""
    masses = (torch.arange(1024) % 2).float().view(16, -1)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(masses.shape[1], (20_000, 16), generator=generator)
    off = (masses[torch.arange(16), drawn].mean(-1) - 0.5).abs()
    for failure in (0.1, 0.01):
        margin = hoeffding_margin(16, failure)
        assert (off > margin).float().mean() <= failure
        assert margin <= 1.8 * torch.quantile(off, 1 - failure)
    assert hoeffding_margin(16, 0.05) == pytest.approx(0.3395, abs=1e-4)
    assert hoeffding_margin(64, 0.05) == pytest.approx(0.3395 / 2, abs=1e-4)


def test_explain_says_what_leaving_blocks_out_may_cost() -> None:
    lines = [line for line in SparseAttention(0.3).describe(FACTS) if line.startswith("error:")]
    assert lines == [
        "error: an output that loses 70% of its attention is off by at most 1.40 times the spread of its values "
        "(bound); what loses least is left out"
    ]
