"""Forty random sequences of the API; `python -m tests.fuzz.api` runs as many as asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from diffusers.utils import logging

from stack import Stack

from ..pipelines.build import one_thread
from . import api


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def test_twenty_sequences_leave_nothing_behind_and_use_nothing_stale() -> None:
    logging.set_verbosity_error()
    said: list[str] = []
    failures = api.fuzz(20, seed=0, told=said.append)
    assert not failures, "\n".join(said)


def test_it_notices_what_stays_on_the_model(monkeypatch: Any) -> None:
    calls: list[api.Op] = [("start", ("FluxPipeline", 0)), ("add", "svd"), ("call", {"steps": 14, "prompt": 0})]
    assert api.run(calls) == ""
    monkeypatch.setattr(Stack, "undo", lambda stack, stage=None: stack)
    assert api.run(calls) == "after undo(): another output than the twin's"


def test_it_notices_another_output_and_finds_the_shortest_sequence(monkeypatch: Any) -> None:
    call = {"steps": 14, "prompt": 0}
    ops: list[api.Op] = [("start", ("DiTPipeline", 0)), ("look", None), ("call", call), ("add", "svd"), ("call", call)]
    assert api.run(ops) == ""
    calls = iter(range(100))
    own = Stack.__call__
    monkeypatch.setattr(Stack, "__call__", lambda stack, **given: own(stack, **given)[0] + next(calls) % 2)
    assert api.run(ops) == "call: another output than a fresh stack's"
    assert api.words(api.shortened(ops)) == f"DiTPipeline, Stack({{}}): call {call}"


def test_a_cache_that_replaces_another_fills_up_the_stacks_budget() -> None:
    assert (
        api.run(
            [("start", ("FluxPipeline", 5)), ("add", "svd"), ("replace", "svd"), ("call", {"steps": 4, "prompt": 1})]
        )
        == ""
    )
