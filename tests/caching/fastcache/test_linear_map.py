from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from stack.caching.fastcache.linear_map import GramSums
from stack.caching.fastcache.maps import APPROXIMATIONS, WHOLE, LinearMaps, load_maps
from stack.core.errors import StackError

D = 6


def rows(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs off the origin, and what a noisy affine map adds to them."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, D, generator=g, dtype=torch.float64) * torch.linspace(0.3, 3, D) + 2
    weight = torch.randn(D, D, generator=g, dtype=torch.float64)
    return x, x @ weight + 5 + 0.1 * torch.randn(count, D, generator=g, dtype=torch.float64)


def summed(x: torch.Tensor, y: torch.Tensor, calls: int = 3) -> GramSums:
    sums = GramSums(D)
    for part, value in zip(x.tensor_split(calls), y.tensor_split(calls), strict=True):
        sums.add(part[None], value[None])
    return sums


def test_without_ridge_it_is_the_least_squares_fit_with_a_bias() -> None:
    x, y = rows(200)
    fitted = summed(x, y).solve(ridge=1e-12)
    expected = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1), y).solution
    torch.testing.assert_close(fitted.factors[0], expected[:-1].float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fitted.bias, expected[-1].float(), rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 60), st.floats(1e-4, 10), st.integers(0, 99))
def test_the_normal_equations_hold(count: int, ridge: float, seed: int) -> None:
    """(X^T X + lambda I) W = X^T Y of the centred rows; fewer rows than columns included."""
    x, y = rows(count, seed)
    fitted, (cx, cy) = summed(x, y).solve(ridge), (x - x.mean(0), y - y.mean(0))
    gram = cx.mT @ cx
    shrunk = gram + ridge * gram.diagonal().mean() * torch.eye(D)
    scale = float((cx.mT @ cy).abs().max())
    torch.testing.assert_close(shrunk @ fitted.factors[0].double(), cx.mT @ cy, rtol=1e-4, atol=1e-4 * scale)
    torch.testing.assert_close(fitted(x.mean(0).float()), y.mean(0).float(), rtol=1e-4, atol=1e-3)


def test_the_truncation_is_the_best_of_its_rank_for_these_rows() -> None:
    x, y = rows(300)
    sums = summed(x, y)
    whole = sums.solve(1e-9)
    left, right = sums.solve(1e-9, rank=2).factors
    assert left.shape == (D, 2) and right.shape == (2, D)
    centred = x - x.mean(0)
    error = (centred @ (left @ right - whole.factors[0]).double()).norm()
    u, s, v = torch.linalg.svd(whole.factors[0])
    plain = (centred @ (u[:, :2] * s[:2] @ v[:2] - whole.factors[0]).double()).norm()
    best = torch.linalg.svdvals(centred @ whole.factors[0].double())[2:].square().sum().sqrt()
    assert error == pytest.approx(float(best), rel=1e-4) and error < plain


def test_without_a_bias_nothing_in_gives_nothing_out() -> None:
    x, y = rows(200)
    fitted = summed(x, y).solve(1e-12, bias=False)
    expected = torch.linalg.lstsq(x, y).solution.float()
    torch.testing.assert_close(fitted.factors[0], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(fitted(torch.zeros(D)), torch.zeros(D))


def test_a_slope_is_the_map_without_its_bias() -> None:
    fitted = summed(*rows(50)).solve(rank=3)
    a, b = torch.randn(2, 4, D)
    torch.testing.assert_close(fitted(a) - fitted(b), fitted.slope(a - b), rtol=1e-4, atol=1e-4)


def test_nothing_to_fit() -> None:
    with pytest.raises(StackError, match="got 0 rows"):
        GramSums(D).solve()
    with pytest.raises(StackError, match="ridge 0"):
        summed(*rows(9)).solve(0)


UNDER = ("adapters=none", "weight_bits=16")


def maps_of(rank: int = 0) -> LinearMaps:
    fitted = [summed(*rows(50, seed)).solve(rank=rank) for seed in range(3)]
    tables = {name: torch.tensor([[[0.1, 0.2]], [[0.01, 0.05]]]) for name in APPROXIMATIONS}
    maps = dict(zip(("0/image", "0/text", WHOLE), fitted, strict=True))
    return LinearMaps(
        "flux", 1, D, {"static": maps, "delta": {WHOLE: summed(*rows(9)).solve()}}, tables, made_under=UNDER
    )


@pytest.mark.parametrize("rank", [0, 2])
def test_maps_survive_being_written_and_read(rank: int, tmp_path: Path) -> None:
    maps = maps_of(rank)
    maps.save(tmp_path / "maps.safetensors")
    back = load_maps(tmp_path / "maps.safetensors")
    assert (back.family, back.blocks, back.width, back.made_under) == ("flux", 1, D, UNDER)
    assert back.maps["static"].keys() == maps.maps["static"].keys()
    x = torch.randn(3, D)
    for name, key in [("static", "0/image"), ("static", "0/text"), ("static", WHOLE), ("delta", WHOLE)]:
        assert torch.equal(back.maps[name][key](x), maps.maps[name][key](x))
    assert back.scales("delta", 0.02) == maps.scales("delta", 0.02) == [pytest.approx(0.02 / 0.22)]


def test_files_that_hold_no_maps(tmp_path: Path) -> None:
    path = tmp_path / "maps.safetensors"
    with pytest.raises(StackError, match=r"no linear maps in .*fit_maps"):
        load_maps(path)
    path.write_text("nothing of the kind")
    with pytest.raises(StackError, match="no linear maps in"):
        load_maps(path)
    save_file({"weight": torch.zeros(2, 2)}, path)
    with pytest.raises(StackError, match="holds no linear maps"):
        load_maps(path)
    broken = maps_of()
    LinearMaps("flux", 1, D + 1, broken.maps, broken.tables).save(path)
    with pytest.raises(StackError, match=r"factors of shapes \[\(6, 6\)\]: expected a map of width 7"):
        load_maps(path)
