from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.caching.tokenwise.selection import (
    flat_rows,
    gather,
    older,
    random_scores,
    scatter,
    shared_by_halves,
    value_scores,
    with_bonus,
)


def test_random_scores_depend_on_step_and_module_alone() -> None:
    first = random_scores(64, 3, 1)
    torch.manual_seed(99)
    torch.rand(7)
    assert torch.equal(random_scores(64, 3, 1), first)
    others = [random_scores(64, step, place) for step, place in [(4, 1), (3, 2), (1, 3), (0, 0)]]
    assert all((other - first).abs().mean() > 0.1 for other in others)
    assert first.shape == (1, 64) and float(first.min()) >= 0 and float(first.max()) < 1


def test_value_scores_prefer_small_values_and_are_normalised() -> None:
    values = torch.ones(1, 4, 2 * 3)
    values[0, 2] *= 0.1
    values[0, 0, :3] *= 0.5  # one of two heads
    scores = value_scores(values, head_dim=3)
    assert scores.norm() == pytest.approx(1)
    assert scores[0].argsort(descending=True).tolist()[:2] == [2, 0]
    raw = torch.tensor([2 - 1.5 * 3**0.5, 2 - 2 * 3**0.5, 2 - 0.2 * 3**0.5, 2 - 2 * 3**0.5])
    torch.testing.assert_close(scores[0], raw / raw.norm())


def test_the_halves_of_a_guided_batch_share_their_scores() -> None:
    scores = torch.tensor([[1.0, 2], [5, 6], [3, 0], [1, 2]])
    assert shared_by_halves(scores).tolist() == [[2, 1], [3, 4], [2, 1], [3, 4]]


def test_the_best_of_every_cell_comes_first() -> None:
    torch.manual_seed(0)
    scores = 1 + 0.3 * torch.rand(2, 6 * 4)
    raised = with_bonus(scores, (6, 4), 2, 0.6)
    chosen = raised.topk(6, dim=1).indices
    for sample in range(2):
        cells = {(int(token) // 4 // 2, int(token) % 4 // 2) for token in chosen[sample]}
        assert len(cells) == 6
        for token in chosen[sample].tolist():
            row, column = token // 8 * 2, token % 4 // 2 * 2
            cell = [r * 4 + c for r in (row, row + 1) for c in (column, column + 1)]
            assert scores[sample, token] == scores[sample, cell].max()
    assert torch.equal(raised.sort().values[:, :18], scores.scatter(1, chosen, -9).sort().values[:, 6:])


def test_a_bonus_never_lowers_a_score() -> None:
    raised = with_bonus(-torch.ones(1, 4) - torch.arange(4), (2, 2), 2, 0.5)
    assert raised.tolist() == [[-0.5, -2, -3, -4]]


def test_cells_lie_within_a_frame_and_are_cut_off_at_its_border() -> None:
    """2 frames of 3 x 4: two whole cells above two halves in each, so four tokens of every frame are raised."""
    scores = torch.tensor(
        [
            [[1, 2, 3, 4], [8, 7, 6, 5], [1, 2, 4, 3]],
            [[9, 2, 3, 4], [8, 7, 6, 5], [-4, -2, -1, -3]],
        ],
        dtype=torch.float64,
    )
    raised = with_bonus(torch.stack([scores, -scores]).flatten(1), (2, 3, 4), 2, 0.5).unflatten(1, (2, 3, 4))
    assert raised[0].tolist() == [
        [[1, 2, 3, 4], [12, 7, 9, 5], [1, 3, 6, 3]],
        [[13.5, 2, 3, 4], [8, 7, 9, 5], [-4, -1, -0.5, -3]],
    ]
    assert raised[1].tolist() == [
        [[-0.5, -2, -1.5, -4], [-8, -7, -6, -5], [-0.5, -2, -4, -1.5]],
        [[-9, -1, -1.5, -4], [-8, -7, -6, -5], [6, 2, 1, 4.5]],
    ]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7), st.integers(1, 4), st.integers(0, 99))
def test_one_token_of_every_cell_is_raised(frames: int, rows: int, columns: int, cell: int, seed: int) -> None:
    scores = 1 + torch.rand(2, frames * rows * columns, generator=torch.Generator().manual_seed(seed))
    moved = (with_bonus(scores, (frames, rows, columns), cell, 0.5) - scores).unflatten(1, (frames, rows, columns))
    assert int((moved > 0).sum()) == 2 * frames * -(-rows // cell) * -(-columns // cell)
    for row in range(0, rows, cell):
        for column in range(0, columns, cell):
            inside = moved[:, :, row : row + cell, column : column + cell].flatten(2)
            assert ((inside > 0).sum(2) == 1).all()


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 40), st.integers(1, 10), st.integers(0, 99))
def test_waiting_makes_every_token_be_chosen(tokens: int, count: int, seed: int) -> None:
    """With a bonus per step as large as the spread of the scores nobody waits twice the fair time."""
    count, seen = min(count, tokens), set()
    scores = torch.rand(1, tokens, generator=torch.Generator().manual_seed(seed))
    ages = torch.zeros_like(scores)
    for _ in range(2 * -(-tokens // count)):
        chosen = (scores + ages).topk(count, dim=1).indices
        ages = older(ages, chosen)
        seen |= set(chosen.flatten().tolist())
    assert seen == set(range(tokens))


def test_ages_count_the_steps_since_a_token_was_computed() -> None:
    ages = torch.zeros(2, 4)
    for chosen in ([[0, 1], [2, 3]], [[0, 2], [2, 0]]):
        ages = older(ages, torch.tensor(chosen))
    assert ages.tolist() == [[0, 1, 0, 2], [0, 2, 0, 1]]


@pytest.mark.parametrize("chosen", [[[4, 1]], [[4, 1], [0, 2]], [[]]])
def test_chosen_tokens_are_gathered_and_written_back(chosen: list[list[int]]) -> None:
    x = torch.arange(2 * 5 * 3.0).reshape(2, 5, 3)
    index = torch.tensor(chosen, dtype=torch.long)
    rows, each = flat_rows(index, 5, 2), [chosen[i % len(chosen)] for i in range(2)]
    some = gather(x, rows)
    assert torch.equal(some, torch.stack([x[i, each[i]] for i in range(2)]))
    expected = x.clone()
    for i in range(2):
        expected[i, each[i]] += 100
    assert torch.equal(scatter(x, rows, some + 100), expected) and torch.equal(x, expected)
