"""Dropped mass of some queries against that of all, and what follows for the error of a map, old or new."""

from __future__ import annotations

import pytest
import torch
from boundbench.documented import hoeffding_margin
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.attention.kernels import dense, gather_attention
from stack.attention.maps import Grid, block_map, keep_mask
from stack.attention.mass import SAMPLED, dropped_mass, sampled_queries
from stack.bounds import dropped_mass_bound

CPU = torch.device("cpu")
GRIDS = (Grid(5, 512, 64, 2), Grid(9, 330, 64, 1, text_last=True), Grid(0, 256, 64, 4))


def draw(grid: Grid, seed: int, sharpness: float, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, grid.tokens, 2, 8, generator=generator) for _ in range(3))
    return q * sharpness, k, v


def exact(q: torch.Tensor, k: torch.Tensor, indices: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(B, H, queries in blocks), by the definition."""
    weights = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights * ~keep_mask(indices, grid)).sum(-1)[..., grid.start : grid.end]


@pytest.mark.parametrize("grid", GRIDS)
def test_mass_of_every_query_is_the_definition(grid: Grid) -> None:
    q, k, _ = draw(grid, 0, 3.0, batch=2)
    indices = block_map(q, k, grid, 0.3)
    mass = dropped_mass(q, k, indices, grid, torch.arange(grid.start, grid.end))
    torch.testing.assert_close(mass, exact(q, k, indices, grid), atol=1e-5, rtol=0)
    assert dropped_mass(q, k, block_map(q, k, grid, 1.0), grid, torch.arange(grid.start, grid.end)).max() == 0


def test_hidden_keys_have_no_mass() -> None:
    grid = GRIDS[1]
    q, k, _ = draw(grid, 1, 1.0)
    indices, queries = block_map(q, k, grid, 0.3), sampled_queries(grid, 0, CPU)
    seen = torch.ones(1, grid.tokens, dtype=torch.bool)
    seen[:, -4:] = False
    loud = k.clone()
    loud[:, -4:] = 100.0
    some, other = (dropped_mass(q, x, indices, grid, queries, seen) for x in (k, loud))
    assert torch.equal(some, other) and (dropped_mass(q, k, indices, grid, queries) < some).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_one_query_is_drawn_from_every_run(grid: Grid) -> None:
    run = (grid.end - grid.start) // SAMPLED
    drawn = torch.stack([sampled_queries(grid, seed, CPU) for seed in range(200)]) - grid.start
    assert (drawn // run == torch.arange(SAMPLED)).all()
    assert len((drawn % run).unique()) == run  # every query of a run can be the one
    assert torch.equal(sampled_queries(grid, 7, CPU), sampled_queries(grid, 7, CPU))


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 9_999),
    sharpness=st.sampled_from([0.1, 1.0, 8.0, 40.0]),
    grid=st.sampled_from(GRIDS),
    keep=st.sampled_from([0.1, 0.5]),
)
def test_the_estimate_is_within_hoeffdings_margin(seed: int, sharpness: float, grid: Grid, keep: float) -> None:
    """With sharp scores a query's mass is nearly 0 or 1: the widest spread there is. A chance of 1e-6 per head."""
    q, k, _ = draw(grid, seed, sharpness)
    indices = block_map(q, k, grid, keep)
    whole = exact(q, k, indices, grid).mean(-1)
    estimate = dropped_mass(q, k, indices, grid, sampled_queries(grid, seed, CPU)).mean(-1)
    assert ((estimate - whole).abs() <= hoeffding_margin(SAMPLED, 1e-6)).all()


def test_the_margin_fails_no_more_often_than_it_says_and_is_not_loose() -> None:
    """Queries of mass 0 or 1, half of each, mixed within every run: the least favourable case."""
    masses = (torch.arange(1024) % 2).float().view(SAMPLED, -1)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(masses.shape[1], (20_000, SAMPLED), generator=generator)
    off = (masses[torch.arange(SAMPLED), drawn].mean(-1) - 0.5).abs()
    for failure in (0.1, 0.01):
        margin = hoeffding_margin(SAMPLED, failure)
        assert (off > margin).float().mean() <= failure
        assert margin <= 1.8 * torch.quantile(off, 1 - failure)
    assert hoeffding_margin(16, 0.05) == pytest.approx(0.3395, abs=1e-4)
    assert hoeffding_margin(64, 0.05) == pytest.approx(0.3395 / 2, abs=1e-4)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 9_999),
    sharpness=st.sampled_from([0.3, 2.0, 20.0]),
    moved=st.sampled_from([0.0, 0.1, 1.0, 10.0]),
    outlier=st.sampled_from([1.0, 1e3]),
)
def test_the_error_bound_holds_for_maps_of_another_input(
    seed: int, sharpness: float, moved: float, outlier: float
) -> None:
    """A map from before, used on what came of its input: 2 delta R, with the mass it drops now; on the mean over the
    queries also with the estimate and its margin in the place of the mass."""
    grid = GRIDS[0]
    q, k, v = draw(grid, seed, sharpness)
    indices = block_map(q, k, grid, 0.3)
    new_q, new_k, noise = draw(grid, seed + 1, sharpness)
    q, k, v = q + moved * new_q, k + moved * new_k, v + moved * noise
    v[:, grid.start :: grid.key] *= outlier
    mass = exact(q, k, indices, grid)
    error = (gather_attention(q, k, v, indices, grid) - dense(q, k, v)).norm(dim=-1).transpose(1, 2)
    error = error[..., grid.start : grid.end]
    radius = (v - v.mean(1, keepdim=True)).norm(dim=-1).amax(1)[..., None]
    assert (error <= dropped_mass_bound(mass, radius) + 1e-4 * radius).all()
    estimate = dropped_mass(q, k, indices, grid, sampled_queries(grid, seed, CPU)).mean(-1)
    at_most = dropped_mass_bound(estimate + hoeffding_margin(SAMPLED, 1e-6), radius[..., 0])
    assert (error.mean(-1) <= at_most).all()
