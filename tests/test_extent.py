"""What a cache tells the passes below it: whose step is full, and which samples and tokens run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stack import Stack
from stack.clock import Clock, uniform
from stack.extent import Extent

from .conftest import inputs, tiny_denoiser
from .passes.test_fastcache import made_up

STEPS = 14
Seen = tuple[int, bool, tuple[int, ...] | None, bool]


def test_without_a_cache_every_step_is_full() -> None:
    extent = Extent()
    assert not extent.cached and extent.is_full(0) and extent.is_full(5)


def test_before_the_decision_nobodys_step_is_full() -> None:
    extent = Extent()
    extent.wait()
    assert extent.cached and not extent.is_full(0)
    extent.decide([True])
    assert extent.is_full(0) and extent.is_full(3)
    extent.decide([True, False])
    assert (extent.is_full(0), extent.is_full(1)) == (True, False)


def test_a_part_ends_where_it_ends_also_after_an_exception() -> None:
    extent = Extent()
    with pytest.raises(KeyError), extent.part([1, 2], whole=False):
        assert extent.rows == (1, 2) and not extent.whole
        raise KeyError
    assert extent.rows is None and extent.whole


def test_every_call_has_its_own() -> None:
    clock = Clock(uniform(4))
    clock.advance(1.0, (1, 4, 4))
    clock.extent.wait()
    clock.advance(0.75, (1, 4, 4))
    assert clock.extent == Extent()


@torch.no_grad()
def seen_by_blocks(method: str, batch: int = 1, **options: Any) -> list[Seen]:
    """(block, whether the first sample's step is full, rows, whole) of every call of a block, on every step."""
    denoiser = tiny_denoiser()
    stack, seen = Stack(denoiser, steps=STEPS).cache(method, **options), list[Seen]()
    clock = stack._target.clock
    blocks = [*denoiser.transformer_blocks, *denoiser.single_transformer_blocks]
    for number, block in enumerate(blocks):

        def note(*_: Any, number: int = number) -> None:
            extent = clock.extent
            first = 0 if extent.rows is None else extent.rows[0]
            seen.append((number, extent.is_full(first), extent.rows, extent.whole))

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
    seen = seen_by_blocks("speca", accept=(0.0, 0.0, 0.0))
    redone = [is_full for number, is_full, rows, _ in seen if number == 0 and rows == (0,)]
    assert redone and all(redone)
    assert any(not is_full for number, is_full, rows, _ in seen if number == 1 and rows is None)


def test_fastcache_says_which_samples_and_that_tokens_are_missing() -> None:
    seen = seen_by_blocks("fastcache-tokens", batch=2, maps=made_up())
    assert {rows for *_, rows, _ in seen} == {(0,), (1,)}
    assert {(is_full, whole) for _, is_full, _, whole in seen} >= {(True, True), (False, False)}
