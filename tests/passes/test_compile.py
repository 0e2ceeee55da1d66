"""Compiled blocks, with the real compiler: same numbers, compiled once, and gone after undo."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from stack import Stack, StackError
from stack.passes.compile import Compile

from ..conftest import inputs, picture, tiny_denoiser, tiny_pipe


def compiled_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_blocks_are_compiled_once_and_equal_the_eager_ones() -> None:
    denoiser = tiny_denoiser()
    quantized = Stack(denoiser).quantize("int8", min_features=64)
    with torch.no_grad():
        before = denoiser(**inputs()).sample
        expected = quantized(**inputs()).sample
        quantized.undo().compile()
        start = compiled_graphs()
        once = quantized(**inputs()).sample
        graphs = compiled_graphs() - start
        quantized.undo()
        assert torch.equal(denoiser(**inputs()).sample, before)
        twice = quantized(**inputs()).sample  # converted and wrapped anew
        quantized.undo()
    # Another rounding of an activation may flip an int8 level here and there.
    assert (once - expected).norm() < 2e-3 * expected.norm()
    assert torch.equal(once, twice)
    assert graphs == 2, "one double and one single block"
    assert compiled_graphs() - start == graphs, "applied again, compiled again"


def test_the_cache_stands_outside_of_the_compiled_blocks() -> None:
    pipe = tiny_pipe()
    cached = Stack(pipe, steps=14).cache("svd", interval=4, warmup=2)
    expected = picture(cached)
    with cached.undo().compile():
        start = compiled_graphs()
        torch.testing.assert_close(picture(cached), expected, atol=1e-4, rtol=0)
        assert compiled_graphs() - start <= 2
        kinds = [step.kind for step in cached.report().steps]
    assert kinds.count("full") == 5 and kinds.count("cached") == 9


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, denoiser: Any) -> None:
    with pytest.raises(StackError, match="unknown compile mode 'fastest': expected one of default"):
        Compile("fastest")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(StackError, match=r"needs a C\+\+ compiler"):
        Stack(denoiser).compile().apply()
    assert "forward" not in vars(denoiser.transformer_blocks[0])
