"""Compiled blocks, with the real compiler: same numbers, compiled once, and gone after undo."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.attention_dispatch import attention_backend

from stack import Stack, StackError
from stack.attention.layers import UNCOMPILED
from stack.compile import Compile

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


def test_int8_rows_compile_in_bf16_behind_a_layer_norm() -> None:
    """A DiT's modulated norm and the row maxima end up in one loop: two reductions of bf16 there did not compile."""
    torch.manual_seed(0)
    denoiser = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=64, num_layers=1, sample_size=64, in_channels=4,
        norm_type="ada_norm_zero", num_embeds_ada_norm=10,
    ).to(torch.bfloat16).eval()  # fmt: skip
    noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    call = {"hidden_states": noise, "timestep": torch.tensor([500]), "class_labels": torch.tensor([3])}
    with torch.no_grad():
        exact = denoiser(**call).sample.float()
        with Stack(denoiser).quantize("int8").compile() as stack:
            got = stack(**call).sample.float()
    assert 1e-4 < float((got - exact).norm() / exact.norm()) < 0.02


def test_an_attention_layer_is_compiled_around_the_operator_that_answers(aot_eager: None) -> None:
    """Two blocks of FLUX: 6 graphs of 203 operations instead of 2 of 201, and the counts of every call."""
    model = tiny_denoiser()
    stack = Stack(model, steps=4).sparse_attn(0.5, block=64, even_if_slower=True, dense_first=1, dense_last=0)
    with stack, torch.no_grad():
        eager = [model(**inputs(sigma, 16), return_dict=False)[0] for sigma in (1.0, 0.75, 0.5, 0.25)]
        right = stack.report().passes["sparse_attn"]
    torch._dynamo.utils.counters.clear()
    compiled = Stack(model, steps=4)
    compiled.sparse_attn(0.5, block=64, even_if_slower=True, dense_first=1, dense_last=0).compile()
    with compiled, torch.no_grad():
        made = [model(**inputs(sigma, 16), return_dict=False)[0] for sigma in (1.0, 0.75, 0.5, 0.25)]
        told = compiled.report().passes["sparse_attn"]
    found = torch._dynamo.utils.counters["stats"]
    assert (found["unique_graphs"], found["calls_captured"]) == (6, 203)
    assert told["sparse_calls"] == right["sparse_calls"] == 6 and told["dense_calls"] == right["dense_calls"]
    for one, other in zip(made, eager, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_with_gradients_an_attention_layer_runs_as_it_is(aot_eager: None) -> None:
    model = tiny_denoiser()
    with Stack(model, steps=4).sparse_attn(0.5, block=64, even_if_slower=True, dense_first=0, dense_last=0).compile():
        given = inputs(0.5, 16)
        given["hidden_states"].requires_grad_()
        model(**given, return_dict=False)[0].sum().backward()
        assert given["hidden_states"].grad is not None and given["hidden_states"].grad.abs().sum() > 0


def sparse_and_compiled(model: Any) -> Stack:
    stack = Stack(model, steps=4).sparse_attn(0.5, block=64, even_if_slower=True, dense_first=0, dense_last=0)
    return stack.compile()


def test_attention_is_answered_where_the_compiler_leaves_a_layer_as_it_is() -> None:
    """From the second call of a layer on: the first one tells."""
    model = tiny_denoiser()
    with sparse_and_compiled(model) as stack, torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for sigma in (1.0, 0.75, 0.5, 0.25):
            model(**inputs(sigma, 16))
        told = stack.report().passes["sparse_attn"]
    assert told["sparse_calls"] == 6 and told["dense_calls"] == {UNCOMPILED: 2}


@contextmanager
def of_one_model(model: Any) -> Iterator[None]:
    model.set_attention_backend("_native_math")
    try:
        yield
    finally:
        model.set_attention_backend("native")


def of_the_process(model: Any) -> AbstractContextManager[None]:
    return attention_backend("_native_math")


@pytest.mark.parametrize("choose", [of_one_model, of_the_process])
def test_a_back_end_that_somebody_chose_computes_dense_calls_of_compiled_blocks(
    choose: Callable[[Any], AbstractContextManager[None]],
) -> None:
    model, call = tiny_denoiser(), inputs(1.0, 16)
    stack = Stack(model, steps=4).sparse_attn(0.5, block=64, even_if_slower=True).compile()
    with choose(model), stack, torch.no_grad():
        model(**call)
        with torch.profiler.profile() as seen:
            model(**call)
    kernels = {event.key for event in seen.key_averages() if "_scaled_dot_product" in event.key}
    assert kernels == {"aten::_scaled_dot_product_attention_math"}
