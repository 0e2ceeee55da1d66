"""The pass of faster exact attention: which kernel for which call, its order among others, and that it goes again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from stack import Stack, StackError
from stack.attention import dense_kernels
from stack.attention.dense_attn import LEFT, DenseAttention
from stack.attention.dense_backend import SLOWER, Dense
from stack.attention.dense_kernels import KERNELS, chosen, cudnn
from stack.attention.layers import AttentionCall
from stack.attention.sparse_attn import SparseAttention
from stack.attention.sparsity import FIRST, LAST, MASKED
from stack.attention.tally import Tally
from stack.core.facts import Machine
from stack.core.plan import explain, make_plan
from stack.models.layout import SelfAttention
from stack.models.schedule import uniform
from stack.models.sdpa import SdpaCall

from ..clocks import clock_of
from ..test_plan import FACTS
from .test_sage_attn import denoiser, given, run, same

STEPS = 10
ZEN4 = Machine("cpu", vector="AVX512", fast_bf16=True)
HALF = replace(FACTS, dtype="bfloat16", image_tokens=4096, text_tokens=16, heads=3, head_dim=64, machine=ZEN4)
CUDA = replace(HALF, machine=Machine("cuda", capability=(9, 0)), head_dim=128)


@pytest.fixture(autouse=True)
def any_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this CPU had fast products, whichever it is: it computes the same by them."""
    monkeypatch.setattr(
        dense_kernels, "pays", lambda machine, dtype: machine.device == "cpu" and dtype == torch.bfloat16
    )


@pytest.fixture(scope="module")
def plain() -> list[torch.Tensor]:
    return run(denoiser())


def test_every_call_is_counted_and_the_output_moves_by_rounding_alone(plain: list[torch.Tensor]) -> None:
    model = denoiser()
    with Stack(model, steps=STEPS).dense_attn("products") as stack:
        for one, right in zip(run(model), plain, strict=True):
            assert 0 < (one.float() - right.float()).norm() / right.float().norm() < 0.01
        assert stack.report().passes["dense_attn"] == {"dense_calls": 20, "other_calls": {}}
    assert all(same(run(model), plain))


def test_short_calls_are_left_to_torch_bit_for_bit(plain: list[torch.Tensor]) -> None:
    """The model's 320 tokens, heads of 32: slower than torch's kernel as far as is known."""
    model = denoiser()
    with Stack(model, steps=STEPS).dense_attn() as stack:
        assert all(same(run(model), plain))
        report = stack.report()
    assert report.passes["dense_attn"] == {"dense_calls": 0, "other_calls": {SLOWER: 20}}
    assert f"0 attention calls by another kernel than torch's: 20 {SLOWER}" in " ".join(report.warnings)


@pytest.mark.parametrize("first", ["dense_attn", "sparse_attn"])
def test_sparse_steps_stay_sparse_and_dense_ones_are_by_the_kernel(first: str) -> None:
    model = denoiser()
    stack = Stack(model, steps=STEPS)
    passes: dict[str, Any] = {
        "dense_attn": DenseAttention("products"), "sparse_attn": SparseAttention(0.5, block=64, even_if_slower=True)
    }  # fmt: skip
    for name in sorted(passes, key=lambda name: name != first):
        stack.add(passes[name])
    with stack:
        run(model)
        report = stack.report().passes
    assert report["sparse_attn"]["sparse_calls"] == 16 and report["sparse_attn"]["dense_calls"] == {FIRST: 2, LAST: 2}
    assert report["dense_attn"] == {"dense_calls": 4, "other_calls": {}}


def backend(name: str = "products") -> Dense:
    return Dense(name, ZEN4, Tally(clock_of(uniform(4))))


def call(tokens: int = 2048, size: int = 64, **more: Any) -> AttentionCall:
    q, k, v = (torch.zeros(1, 2, tokens, size, dtype=torch.bfloat16) for _ in range(3))
    return AttentionCall("layer", SelfAttention(), SdpaCall(**{"q": q, "k": k, "v": v} | more), tokens)


def test_what_no_kernel_takes_goes_to_torch() -> None:
    hiding = torch.ones(1, 1, 1, 2048, dtype=torch.bool)
    assert backend().unfit(call(mask=hiding)) == ""
    hiding[..., -5:] = False
    assert backend().unfit(call(mask=hiding)) == MASKED
    assert backend().unfit(call(causal=True)) == "causal"
    assert backend().unfit(call(k=torch.zeros(1, 2, 2048, 64))) == "queries, keys and values of several dtypes"
    recorded = torch.zeros(1, 2, 2048, 64, dtype=torch.bfloat16, requires_grad=True)
    assert backend().unfit(call(v=recorded)) == "gradients are recorded"
    with torch.no_grad():
        assert backend().unfit(call(v=recorded)) == ""
    assert backend("auto").unfit(call(tokens=400)) == SLOWER and backend("auto").unfit(call()) == ""


def test_a_scale_of_its_own_is_kept() -> None:
    q, k, v = (torch.randn(1, 2, 300, 64, generator=torch.Generator().manual_seed(n)).bfloat16() for n in range(3))
    asked = SdpaCall(q, k, v, scale=0.3)
    kernel = backend()
    assert kernel.unfit(AttentionCall("layer", SelfAttention(), asked, 300)) == ""
    made = kernel.run(*asked.plain(), AttentionCall("layer", SelfAttention(), asked, 300)).transpose(1, 2)
    right = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=0.3)
    torch.testing.assert_close(made.double(), right, atol=0.03, rtol=0.03)


@pytest.mark.parametrize(
    ("tokens", "size", "speedup"), [(256, 64, 0.0), (600, 64, 1.3), (4112, 64, 2.6), (300, 128, 1.7), (9000, 256, 3.2)]
)
def test_the_speed_is_that_of_the_nearest_shorter_call_that_was_measured(
    tokens: int, size: int, speedup: float
) -> None:
    assert KERNELS["products"].speedup(tokens, size) == speedup


def test_the_fastest_kernel_is_chosen_by_length_and_machine() -> None:
    half = torch.bfloat16
    assert chosen("auto", ZEN4, half, 4112, 64) is KERNELS["products"]
    assert chosen("auto", ZEN4, half, 300, 64) is None and chosen("auto", ZEN4, torch.float32, 4112, 64) is None
    assert chosen("auto", CUDA.machine, half, 4608, 128) is KERNELS["cudnn"]
    assert chosen("auto", CUDA.machine, half, 4608, 64) is None  # 1.2 times as fast: not worth another rounding
    assert chosen("cudnn", CUDA.machine, half, 4608, 64) is KERNELS["cudnn"]
    assert chosen("torch", CUDA.machine, half, 4608, 128) is None
    for size in (36, 160, 256):  # what torch itself does not ask cuDNN for
        assert chosen("auto", CUDA.machine, half, 9000, size) is chosen("cudnn", CUDA.machine, half, 9000, size) is None


def test_cudnn_is_asked_by_its_own_name() -> None:
    """On tensors without numbers: that its operator takes what it is given, and gives back heads last."""
    q = torch.empty(2, 300, 4, 128, dtype=torch.bfloat16, device="meta")
    out = cudnn(q, q, q)
    assert out.shape == q.shape and out.dtype == q.dtype


def test_the_plan_says_which_kernel_and_why() -> None:
    told = explain(make_plan(HALF, [DenseAttention()]))
    assert "dense_attn: products: two matrix products with the exponentials between them" in told
    assert "2.6x as fast as torch's attention at 4,112 tokens and heads of 64, measured on a Zen 4 core" in told
    told = explain(make_plan(CUDA, [DenseAttention()]))
    assert "1.4x as fast" in told and "not measured here" in told
    for facts, why in (
        (replace(HALF, dtype="float32"), "products: it gains in bfloat16 alone, the model is in float32"),
        (replace(HALF, image_tokens=256), "no kernel is faster than torch's choice: 272 tokens, heads of 64"),
    ):
        plan = make_plan(facts, [DenseAttention()])
        assert why in explain(plan) and LEFT in explain(plan) and plan.passes() == ()
    told = explain(make_plan(replace(HALF, image_tokens=0), [DenseAttention("products")]))
    assert "products: two matrix" in told and "time: the number of tokens decides, which is unknown" in told
    told = explain(make_plan(replace(CUDA, head_dim=160), [DenseAttention("cudnn")]))
    assert "expected heads of 8, 16, ... 128, got 160" in told
    plan = make_plan(CUDA, [DenseAttention("products")])
    assert "it is for CPUs, the model is on cuda" in explain(plan) and plan.passes() == ()


def test_sparse_attention_brings_it_along_where_it_is_faster() -> None:
    plan = make_plan(HALF, [SparseAttention(0.4)])
    assert plan.passes() == (SparseAttention(0.4), DenseAttention())
    assert plan.added == {"dense_attn": DenseAttention("torch")}
    assert "dense calls by torch's kernel would take 2.6 times as long as by products" in explain(plan)
    declined = make_plan(HALF, [SparseAttention(0.4), DenseAttention("torch")])
    assert declined.passes() == (SparseAttention(0.4), DenseAttention("torch"))
    assert make_plan(replace(HALF, dtype="float32"), [SparseAttention(0.4)]).added == {}


def test_torchs_own_attention_is_left_as_it_is_without_a_warning() -> None:
    model = denoiser()
    with Stack(model, steps=STEPS).dense_attn("torch") as stack, torch.no_grad():
        model(**given(0.5))
        report = stack.report()
    assert report.warnings == [] and report.passes["dense_attn"] == {}
    assert f"dense_attn: {LEFT}" in stack.explain()


def test_where_others_take_every_call_nothing_is_warned_of() -> None:
    model = denoiser()
    stack = Stack(model, steps=STEPS).dense_attn("products")
    with stack.sparse_attn(0.5, block=64, even_if_slower=True, dense_first=0, dense_last=0), torch.no_grad():
        model(**given(0.5))
        report = stack.report()
    assert report.warnings == [] and report.passes["dense_attn"] == {"dense_calls": 0, "other_calls": {}}


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(StackError, match="expected one of auto, cudnn, products, torch"):
        Stack(denoiser()).dense_attn("flash4")
    with pytest.raises(StackError, match="backend"):
        DenseAttention(3)  # type: ignore[arg-type]


def test_compiled_blocks_compute_the_same(plain: list[torch.Tensor]) -> None:
    model = denoiser()
    with Stack(model, steps=STEPS).dense_attn("products").compile(), torch.no_grad():
        for sigma, right in zip(uniform(STEPS).sigmas[:2], plain, strict=False):
            one = model(**given(sigma), return_dict=False)[0]
            assert (one.float() - right.float()).norm() / right.float().norm() < 0.02
