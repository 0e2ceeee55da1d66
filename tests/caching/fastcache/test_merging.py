from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.caching.fastcache.merging import group, importance
from stack.caching.fastcache.running import Running, pick, put
from stack.caching.fastcache.saliency import moving_tokens, relative_change, saliency

D = 5


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, count, D, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.floats(0.01, 1), st.integers(0, 99), st.integers(1, 50))
def test_merging_and_back(count: int, ratio: float, seed: int, chunk: int) -> None:
    x = tokens(count, seed)
    merge = group(x[0], importance(x[0], tokens(count, seed + 1)[0], chunk=chunk), ratio, chunk)
    merged = merge.merge(x)
    assert merged.shape == (1, max(1, -(-ratio * count // 1)), D) and merge.weights.min() >= 0
    # Weighted averages lie within their clusters, and unchanged averages change nothing.
    assert merged.min() >= x.min() - 1e-5 and merged.max() <= x.max() + 1e-5
    torch.testing.assert_close(merge.unmerge(merged, merged, x), x)
    alone = merge.alone
    assert torch.equal(merge.unmerge(merged, merged, x)[:, alone], x[:, alone])
    moved = merge.unmerge(merged + 2, merged, x)
    torch.testing.assert_close(moved, x + 2, rtol=1e-4, atol=1e-4)


def test_with_ratio_1_it_is_the_identity() -> None:
    x = tokens(30)
    merge = group(x[0], importance(x[0], x[0]), 1.0)
    assert torch.equal(merge.merge(x), x) and bool(merge.alone.all())
    out = torch.randn_like(x)
    assert torch.equal(merge.unmerge(out, x, x), out)


def test_tokens_join_their_nearest_centre_and_weigh_as_they_matter() -> None:
    x = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    merge = group(x, torch.tensor([3.0, 1.0, 1.0, 4.0]), 0.5)
    assert merge.centres.tolist() == [0, 3] and merge.cluster.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(merge.merge(x[None]), torch.tensor([[[0.25], [10.8]]]))


def test_a_centre_stays_in_its_own_cluster_among_equal_tokens() -> None:
    merge = group(torch.ones(5, D), torch.tensor([1.0, 3.0, 1.0, 3.0, 1.0]), 0.4)
    assert merge.centres.tolist() == [1, 3] and merge.cluster[merge.centres].tolist() == [0, 1]
    assert torch.equal(merge.merge(torch.ones(1, 5, D)), torch.ones(1, 2, D))


def test_importance_is_density_raised_by_motion() -> None:
    x = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    still = importance(x, x, neighbours=1)
    # Squared distances to the nearest other: 1, 1, 1, 49; mean 13.
    torch.testing.assert_close(still, torch.exp(-torch.tensor([1.0, 1.0, 1.0, 49.0]) / 13))
    before = x - torch.tensor([[0.0], [0.0], [4.0], [0.0]])
    torch.testing.assert_close(importance(x, before, 1, motion=0.5) / still, torch.tensor([1.0, 1.0, 3.0, 1.0]))
    torch.testing.assert_close(importance(100 * x, 100 * x, 1), still)


def test_importance_does_not_depend_on_the_chunk() -> None:
    x, before = tokens(20)[0], tokens(20, 1)[0]
    for chunk in (1, 7, 20):
        torch.testing.assert_close(importance(x, before, chunk=chunk), importance(x, before))


def test_importance_of_equal_tokens_is_finite() -> None:
    x = torch.ones(6, D)
    assert torch.equal(importance(x, x), torch.ones(6))
    assert torch.equal(importance(x[:1], x[:1]), torch.ones(1))


def test_saliency_and_the_tokens_that_move() -> None:
    before = tokens(6)[0]
    x = before.clone()
    x[1] += torch.tensor([3.0, 4.0, 0.0, 0.0, 0.0])
    x[4, 0] += 1
    salience = saliency(x, before)
    torch.testing.assert_close(salience, torch.tensor([0.0, 25.0, 0.0, 0.0, 1.0, 0.0]), rtol=1e-4, atol=1e-5)
    assert moving_tokens(salience, 1.0).tolist() == [1]
    assert moving_tokens(salience, 0.2).tolist() == [1, 4]
    assert moving_tokens(salience, 0.0).tolist() == [0, 1, 2, 3, 4, 5]
    assert moving_tokens(salience, 9.0).tolist() == []


def test_the_change_is_relative_to_the_older_input() -> None:
    assert relative_change(torch.full((2, 3), 3.0), torch.full((2, 3), 2.0)) == pytest.approx(0.5)


def test_running_tokens_come_back_to_their_places() -> None:
    x, running = tokens(10), Running()
    assert running.whole and running.places is None and torch.equal(running.enter(x), x)
    running.only(torch.arange(10), of=10)
    assert running.whole
    running.only(torch.tensor([1, 4, 5, 8]), of=10)
    running.merge(group(pick(x, running.tokens)[0], torch.tensor([1.0, 5.0, 1.0, 5.0]), 0.5))
    assert running.places is not None and running.places.tolist() == [4, 8]
    out = running.leave(running.enter(x) + 1, x)
    whole = put(x, running.tokens, out)
    expected = x.clone()
    expected[:, [1, 4, 5, 8]] += 1
    torch.testing.assert_close(whole, expected)
    running.only(torch.empty(0, dtype=torch.long), of=10)
    assert running.none
