"""One stack, any sequence of requests: each gives what a fresh stack gives, whatever ran or broke off before it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from stack import Stack

from .conftest import tiny_pipe

PROMPTS = ("a red ring left of a blue star", "a green circle")
Request = tuple[int, int, int, tuple[str, ...]]
REQUESTS = st.tuples(
    st.sampled_from((14, 17)),  # steps
    st.integers(0, 1),  # seed
    st.sampled_from((16, 24)),  # pixels
    st.sampled_from((PROMPTS[:1], PROMPTS[1:], PROMPTS)),
)


def draw(stack: Any, request: Request, **options: Any) -> torch.Tensor:
    steps, seed, size, prompts = request
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    return stack(
        list(prompts),
        num_inference_steps=steps,
        height=size,
        width=size,
        generator=generators,
        output_type="pt",
        **options,
    ).images


class Broken(RuntimeError):
    pass


def machine(method: str, examples: int = 6, **options: Any) -> type[RuleBasedStateMachine]:
    """A machine for one preset."""

    @cache
    def fresh(request: Request) -> torch.Tensor:
        return draw(Stack(tiny_pipe(), steps=14).cache(method, **options), request)

    class Requests(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.stack = Stack(tiny_pipe(), steps=14).cache(method, **options)

        @rule(request=REQUESTS)
        def whole(self, request: Request) -> None:
            assert torch.equal(draw(self.stack, request), fresh(request))

        @rule(request=REQUESTS, after=st.integers(0, 13))
        def broken_off(self, request: Request, after: int) -> None:
            def stop(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
                if step == after:
                    raise Broken
                return {}

            with pytest.raises(Broken):
                draw(self.stack, request, callback_on_step_end=stop)

        @rule()
        def taken_off(self) -> None:
            self.stack.undo()

        def teardown(self) -> None:
            self.stack.undo()

    Requests.TestCase.settings = settings(max_examples=examples, stateful_step_count=8, deadline=None)
    return Requests


TestSvd = machine("svd", interval=4, warmup=2).TestCase
TestModules = machine("taylorseer", interval=4).TestCase
TestGate = machine("first-block", threshold=0.5).TestCase
TestDrafts = machine("speca-published", accept=(0.5, 0.5, 0.05)).TestCase
TestTokens = machine("duca", interval=5, warmup=1).TestCase
TestAround = machine("easycache-published", threshold=0.1).TestCase
TestRelated = machine("rfc", examples=3, threshold=0.5).TestCase
