"""What a cache tells the passes below it: whose step is full, and which samples and tokens run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stack import Stack
from stack.models.schedule import uniform
from stack.runtime.step import ActiveSet

from ..clocks import advance, clock_of
from ..conftest import inputs, tiny_denoiser
from ..passes.test_fastcache import made_up

STEPS = 14
Seen = tuple[int, bool, tuple[int, ...] | None, bool]


def test_without_a_cache_every_step_is_full() -> None:
    active_set = ActiveSet()
    assert not active_set.cached and active_set.is_full(0) and active_set.is_full(5)


def test_before_the_decision_nobodys_step_is_full() -> None:
    active_set = ActiveSet()
    active_set.wait()
    assert active_set.cached and not active_set.is_full(0)
    active_set.decide([True])
    assert active_set.is_full(0) and active_set.is_full(3)
    active_set.decide([True, False])
    assert (active_set.is_full(0), active_set.is_full(1)) == (True, False)


def test_a_part_ends_where_it_ends_also_after_an_exception() -> None:
    active_set = ActiveSet()
    with pytest.raises(KeyError), active_set.part([1, 2], whole=False):
        assert active_set.rows == (1, 2) and not active_set.whole
        raise KeyError
    assert active_set.rows is None and active_set.whole


def test_every_call_has_its_own() -> None:
    clock = clock_of(uniform(4))
    advance(clock, 1.0, (1, 4, 4))
    clock.active_set.wait()
    advance(clock, 0.75, (1, 4, 4))
    assert clock.active_set == ActiveSet()


@torch.no_grad()
def seen_by_blocks(method: str, batch: int = 1, **options: Any) -> list[Seen]:
    """(block, whether the first sample's step is full, rows, whole) of every call of a block, on every step."""
    denoiser = tiny_denoiser()
    stack, seen = Stack(denoiser, steps=STEPS).cache(method, **options), list[Seen]()
    clock = stack._target.clock
    blocks = [*denoiser.transformer_blocks, *denoiser.single_transformer_blocks]
    for number, block in enumerate(blocks):

        def note(*_: Any, number: int = number) -> None:
            active_set = clock.active_set
            first = 0 if active_set.rows is None else active_set.rows[0]
            seen.append((number, active_set.is_full(first), active_set.rows, active_set.whole))

        block.attn.register_forward_pre_hook(note)
    with stack:
        for sigma in uniform(STEPS).sigmas:
            call = inputs(sigma, batch=batch)
            call["hidden_states"][:, :9] *= 1 + sigma  # a few tokens move
            stack(**call)
    return seen


def test_front_blocks_run_before_the_decision_and_back_blocks_after_it() -> None:
    front = seen_by_blocks("svd", front=1)
    full = [number for number, is_full, *_ in front if is_full]
    assert [n for n, *_ in front].count(0) == STEPS and full and set(full) == {1}
    assert full.count(1) == [n for n, *_ in front].count(1) < STEPS
    back = seen_by_blocks("svd", back=1)
    kinds = [is_full for number, is_full, *_ in back if number == 1]
    assert len(kinds) == STEPS and 0 < sum(kinds) < STEPS
    assert sum(kinds) == sum(number == 0 for number, *_ in back)


def test_a_rejected_draft_is_a_full_step_after_all() -> None:
    """Blocks that a draft left out run when it fails its check, for the samples that failed."""
    seen = seen_by_blocks("speca-published", accept=(0.0, 0.0, 0.0))
    redone = [is_full for number, is_full, rows, _ in seen if number == 0 and rows == (0,)]
    assert redone and all(redone)
    assert any(not is_full for number, is_full, rows, _ in seen if number == 1 and rows is None)


def test_fastcache_says_which_samples_and_that_tokens_are_missing() -> None:
    seen = seen_by_blocks("fastcache-published-tokens", batch=2, maps=made_up())
    assert {rows for *_, rows, _ in seen} == {(0,), (1,)}
    assert {(is_full, whole) for _, is_full, _, whole in seen} >= {(True, True), (False, False)}
