"""Values against annotations: what is taken, what is refused, and in which words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from stack import Stack, StackError
from stack.core.validate import AtLeastOne, RunSteps, check_fields, prompts_of
from tests.conftest import tiny_denoiser


@dataclass(frozen=True)
class Options:
    interval: AtLeastOne = 7
    full: tuple[int, ...] = ()
    gains: tuple[float, float] = (1.0, 0.0)
    noise: tuple[tuple[float, float], ...] = ()
    on: bool = False
    name: str = ""
    accept: tuple[float, float, float] | None = None
    layers: tuple[tuple[str, str], ...] | Mapping[str, str] | None = None
    tensor: torch.Tensor | None = None
    steps: RunSteps = 50

    def __post_init__(self) -> None:
        check_fields(self, "cache")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"full": [1, 2]}, {"full": (1, 2)}),
        ({"full": range(3)}, {"full": (0, 1, 2)}),
        ({"gains": [1, 0]}, {"gains": (1.0, 0.0)}),
        ({"gains": (np.float32(0.5), 0)}, {"gains": (0.5, 0.0)}),
        ({"interval": np.int64(3)}, {"interval": 3}),
        ({"noise": [[1, 2], [3, 4]]}, {"noise": ((1.0, 2.0), (3.0, 4.0))}),
        ({"layers": {"a": "nf4"}}, {"layers": {"a": "nf4"}}),
        ({"accept": None}, {"accept": None}),
    ],
)
def test_what_toml_and_numpy_have_instead_is_taken(given: dict[str, Any], kept: dict[str, Any]) -> None:
    made = Options(**given)
    for name, value in kept.items():
        found = getattr(made, name)
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"interval": 2.5}, "cache.interval: expected a whole number of at least 1, got 2.5"),
        ({"interval": True}, "cache.interval: expected a whole number of at least 1, got True"),
        ({"interval": 10**30}, "cache.interval: expected a whole number of at least 1, got 1000000"),
        ({"steps": 10_001}, "cache.steps: expected a whole number of at least 1 and at most 10000, got 10001"),
        ({"full": (0, 2.5)}, "cache.full[1]: expected a whole number, got 2.5"),
        ({"full": 3}, "cache.full: expected a list, each a whole number, got 3"),
        ({"full": "abc"}, "cache.full: expected a list, each a whole number, got 'abc'"),
        ({"full": [0] * 10_001}, "cache.full: expected a list, each a whole number, got [0, 0"),
        ({"gains": (float("nan"), 1)}, "cache.gains[0]: expected a finite number, got nan"),
        ({"gains": (float("inf"), 1)}, "cache.gains[0]: expected a finite number, got inf"),
        ({"gains": (10**400, 1)}, "cache.gains[0]: expected a finite number, got 1000"),
        ({"gains": (1,)}, "cache.gains: expected a list of 2, each a finite number, got (1,)"),
        ({"noise": [[1, 2, 3]]}, "cache.noise[0]: expected a list of 2, each a finite number, got [1, 2, 3]"),
        ({"on": 1}, "cache.on: expected true or false, got 1"),
        ({"on": "yes"}, "cache.on: expected true or false, got 'yes'"),
        ({"name": 3}, "cache.name: expected a text, got 3"),
        ({"tensor": [1.0]}, "cache.tensor: expected a Tensor, got [1.0]"),
    ],
)
def test_what_is_refused_is_named(given: dict[str, Any], told: str) -> None:
    with pytest.raises(StackError) as error:
        Options(**given)
    assert str(error.value).startswith(told)


def test_a_number_of_too_many_digits_for_python_to_write() -> None:
    with pytest.raises(StackError, match=r"cache.interval: .* got a number of too many digits"):
        Options(interval=16**5000)


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda s: s.quantize("int8", rank=4), "unknown option of quantize 'rank': expected one of"),
        (lambda s: s.quantize("int8", skipp=()), "unknown option of quantize 'skipp': did you mean 'skip'?"),
        (lambda s: s.sage_attn(keep=1), "unknown option of sage_attn 'keep'"),
        (lambda s: s.sparse_attn(x=1), "unknown option of sparse_attn 'x'"),
        (lambda s: s.quantize("int8", min_features="a"), "quantize.min_features: expected a whole number"),
        (lambda s: s.quantize("int8", rounded="x"), "quantize.rounded: expected a FeedbackRounding, got 'x'"),
        (lambda s: s.distill("shapes-flux-4", sigmas=3), "distill.sigmas: expected a list, each a finite number"),
        (lambda s: s.distill("shapes-flux-4", merge=3), "distill.merge: expected true or false, got 3"),
        (lambda s: s.distill(3), "distill.adapter: expected a text, got 3"),
        (lambda s: s.distill("shapes-flux-4", True, shift=float("nan")), "adapter.shift: expected a finite number"),
        (lambda s: s.compile(3), "compile.mode: expected a text, got 3"),
        (lambda s: s.cache(["svd"]), "cache.method: expected a text, got ['svd']"),
        (lambda s: s.cache("svd", max_error="x"), "cache.max_error: expected a finite number of at least 0, got 'x'"),
    ],
)
def test_python_calls_give_the_line_that_a_file_gives(build: Any, told: str) -> None:
    stack = Stack(tiny_denoiser())
    with pytest.raises(StackError) as error:
        build(stack)
    assert str(error.value).startswith(told)
    assert stack.passes == ()


def test_one_prompt_stands_for_a_list_of_one() -> None:
    assert prompts_of("a red ring") == ["a red ring"] and prompts_of(("a", "b")) == ["a", "b"] and prompts_of(7) == [7]
    for odd in (None, True, 2.5, {"a": 1}, [None], ["a", 2.5]):
        with pytest.raises(StackError, match="prompts: expected a list of texts"):
            prompts_of(odd)


def test_an_error_is_one_line_whatever_it_quotes() -> None:
    assert str(StackError("a\nb\x1b[31m \udcff\u2028c")) == "a b?[31m ? c"
