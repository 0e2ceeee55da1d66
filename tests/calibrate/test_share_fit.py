"""Shares of blocks by layer and third of the schedule: what they are made of, and where they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stack import Stack
from stack.attention.sparse_attn import SparseAttention
from stack.calibration.share_fit import thirds
from stack.core.errors import StackError
from stack.recipe import Recipe, load_recipe, recipe_toml

from ..conftest import tiny_pipe

PROMPTS = ["a red ring", "a blue star"]
STEPS = 9
LAYERS = ["single_transformer_blocks.0.attn", "transformer_blocks.0.attn"]


def stack_on(pipe: Any, **options: Any) -> Stack:
    return Stack(pipe, steps=STEPS).add(SparseAttention(block=64, even_if_slower=True, **options))


def sparse_of(stack: Stack) -> SparseAttention:
    (found,) = (p for p in stack.passes if isinstance(p, SparseAttention))
    return found


def draw(stack: Stack) -> torch.Tensor:
    return stack(PROMPTS[0], generator=torch.Generator().manual_seed(0), output_type="latent")[0]


def test_a_third_is_the_mean_of_its_steps() -> None:
    kept = {"a": ([0.25, 0.5], [0.1234, 0.1238], [1.0]), "b": ([], [0.5], [])}
    assert thirds(kept) == {"a": (0.375, 0.124, 1.0), "b": (1.0, 0.5, 1.0)}


def test_shares_are_those_that_the_budget_came_to() -> None:
    """Of one prompt: the means over the steps of each third in the report of a run by the budget itself."""
    pipe = tiny_pipe(36)
    plain = stack_on(pipe, max_error=0.3)
    draw(plain)
    ran = plain.report().passes["sparse_attn"]["by_layer"]
    plain.undo()
    fitted = stack_on(pipe, max_error=0.3).fit_shares(PROMPTS[:1], progress=False)
    table = sparse_of(fitted).table
    assert list(table) == LAYERS
    for layer in LAYERS:
        steps = ran[layer]["kept"]
        expected = [sum(part) / len(part) for part in (steps[1:3], steps[3:6], steps[6:8])]  # both ends are dense
        assert table[layer] == pytest.approx(expected, abs=6e-4)
    assert any(share < 1 for shares in table.values() for share in shares)


def test_calls_keep_what_the_table_says_and_measure_no_error() -> None:
    shares = {LAYERS[0]: (1.0, 0.6, 1.0), LAYERS[1]: (0.4, 1.0, 0.8)}
    stack = stack_on(tiny_pipe(36), max_error=0.3, layers=shares)
    draw(stack)
    figures = stack.report().passes["sparse_attn"]
    blocks = figures["by_layer"][LAYERS[0]]["kept"], figures["by_layer"][LAYERS[1]]["kept"]
    assert figures["output_error"] is None
    assert all(share == 1 for share in (*blocks[0][:3], *blocks[0][6:], *blocks[1][3:6]))
    assert len({*blocks[0][3:6]}) == len({*blocks[1][1:3]}) == len({*blocks[1][6:8]}) == 1
    assert 0.6 <= blocks[0][3] < 1 and 0.4 <= blocks[1][1] < blocks[1][6] < 1


def test_a_recipe_holds_the_shares(tmp_path: Path) -> None:
    fitted = sparse_of(stack_on(tiny_pipe(36), max_error=0.3).fit_shares(PROMPTS, progress=False))
    path = tmp_path / "mine.toml"
    path.write_text(recipe_toml(Recipe("mine", stages={"sparse_attn": fitted.options()})))
    (read,) = load_recipe(str(path)).passes()
    assert read == fitted and fitted.calibrated_for
    assert load_recipe(str(path)).stages["sparse_attn"] == fitted.options()


def test_a_saved_stack_holds_the_shares_and_their_stamp(tmp_path: Path) -> None:
    stack = stack_on(tiny_pipe(36), max_error=0.3).quantize("int8", min_features=64).fit_shares(PROMPTS, progress=False)
    out = draw(stack)
    stack.save(tmp_path / "saved")
    loaded = Stack.load(tmp_path / "saved", tiny_pipe(36))
    assert sparse_of(loaded) == sparse_of(stack) and torch.equal(draw(loaded), out)


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: Stack(tiny_pipe(36)).sparse_attn(0.5), "expected .* got no budget"),
        (lambda: Stack(tiny_pipe(36)).cache("svd"), "got no sparse_attn"),
        (lambda: Stack(tiny_pipe(36).transformer).sparse_attn(max_error=0.1), "got a bare denoiser"),
        (lambda: Stack(tiny_pipe(36), steps=2).sparse_attn(max_error=0.1), "no shares to fit: .* 0 of 2 steps"),
    ],
)
def test_where_there_is_nothing_to_fit_it_says_so(build: Any, told: str) -> None:
    with pytest.raises(StackError, match=told):
        build().fit_shares(PROMPTS, progress=False)


def test_the_stack_stays_as_it_was_off_or_on() -> None:
    pipe = tiny_pipe(36)
    stack = stack_on(pipe, max_error=0.3)
    assert not stack.fit_shares(PROMPTS[:1], progress=False).applied
    stack.apply()
    assert stack.fit_shares(PROMPTS[:1], progress=False).applied and sparse_of(stack).table
    stack.undo()
