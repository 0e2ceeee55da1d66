"""The 8-bit attention pass: what it refuses, which calls it computes beside sparse attention, what it takes back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from stack import Stack
from stack.attention import sage_attn as subject
from stack.attention.eight_bit import EightBit
from stack.attention.layers import AttentionCall
from stack.attention.sage_attn import SageAttention
from stack.attention.sparsity import FIRST, LAST, MASKED
from stack.attention.tally import Tally
from stack.core.facts import Machine
from stack.core.plan import explain, make_plan
from stack.models.layout import SelfAttention
from stack.models.schedule import uniform
from stack.models.sdpa import SdpaCall
from stack.recipe import parse_recipe

from ..clocks import clock_of
from ..conftest import inputs, tiny_denoiser
from ..test_plan import FACTS

STEPS = 10
HALF = replace(FACTS, dtype="bfloat16", image_tokens=4096)
CUDA = replace(HALF, machine=Machine("cuda", capability=(9, 0)))
FORCED = SageAttention(even_if_slower=True)


def given(sigma: float, words: int = 64, side: int = 16) -> dict[str, torch.Tensor]:
    """256 image tokens and 64 of text: five tiles of 64 keys."""
    text = torch.randn(1, words, 64, generator=torch.Generator().manual_seed(4))
    arguments = inputs(sigma, side) | {"encoder_hidden_states": text}
    half = {name: x.bfloat16() for name, x in arguments.items()}
    return half | {"txt_ids": torch.zeros(words, 3), "img_ids": arguments["img_ids"]}


def denoiser() -> Any:
    return tiny_denoiser().bfloat16()


def run(model: Any, **changes: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(**given(sigma, **changes), return_dict=False)[0] for sigma in uniform(STEPS).sigmas]


def stack(*passes: str) -> Stack:
    """Over a denoiser of its own, passes in the order given."""
    made = Stack(denoiser(), steps=STEPS)
    for name in passes:
        if name == "sage_attn":
            made.sage_attn(even_if_slower=True)
        else:
            made.sparse_attn(0.5, block=64, even_if_slower=True)
    return made


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(some, others, strict=True)]


@pytest.fixture(scope="module")
def plain() -> list[torch.Tensor]:
    return run(denoiser())


def test_every_call_is_counted_and_the_output_hardly_moves(plain: list[torch.Tensor]) -> None:
    alone = stack("sage_attn")
    for one, right in zip(run(alone), plain, strict=True):
        assert 0 < (one.float() - right.float()).norm() / right.float().norm() < 0.02
    assert alone.report().passes["sage_attn"] == {"sage_calls": 20, "other_calls": {}}
    assert alone.report().warnings == []


@pytest.mark.parametrize("order", [("sage_attn", "sparse_attn"), ("sparse_attn", "sage_attn")], ids=" then ".join)
def test_sparse_steps_are_sparse_and_dense_ones_in_8_bits(order: tuple[str, str], plain: list[torch.Tensor]) -> None:
    both, sparse, sage = stack(*order), run(stack("sparse_attn")), run(stack("sage_attn"))
    out = run(both)
    assert same(out, sparse) == [False, *[True] * 8, False]
    assert same(out, sage) == [True, *[False] * 8, True]
    report = both.report().passes
    assert report["sage_attn"] == {"sage_calls": 4, "other_calls": {}}
    assert (report["sparse_attn"]["sparse_calls"], report["sparse_attn"]["dense_calls"]) == (16, {FIRST: 2, LAST: 2})
    both.undo("sage_attn")
    assert same(run(both), sparse) == [True] * STEPS
    both.undo()
    assert same(run(both.denoiser), plain) == [True] * STEPS
    again = stack(*order).apply()
    again.undo("sparse_attn")
    assert same(run(again), sage) == [True] * STEPS


def test_what_the_kernel_cannot_take_is_torchs_bit_for_bit() -> None:
    with stack("sage_attn") as over:
        short, right = run(over, words=8, side=7), run(denoiser(), words=8, side=7)
        figures = over.report().passes["sage_attn"]
        told = over.report().warnings
    assert same(short, right) == [True] * STEPS
    reason = "expected at least 64 keys, got 57"
    assert figures == {"sage_calls": 0, "other_calls": {reason: 20}}
    assert told == [f"0 attention calls in 8 bits: 20 {reason}"]


def test_a_tail_of_keys_is_taken_too() -> None:
    """256 tokens of the latent and 16 of text: four tiles and a quarter."""
    with stack("sage_attn") as over:
        made, right = run(over, words=16), run(denoiser(), words=16)
        assert over.report().passes["sage_attn"] == {"sage_calls": 20, "other_calls": {}}
    for one, other in zip(made, right, strict=True):
        assert 0 < (one.float() - other.float()).norm() / other.float().norm() < 0.02


def test_masks_that_hide_nothing_are_dropped_and_others_are_left_to_torch() -> None:
    mask = torch.ones(1, 1, 320, 320).bool()
    for hidden, told in ((0, {}), (5, {MASKED: 2})):
        mask[..., :hidden] = False
        extra = {"joint_attention_kwargs": {"attention_mask": mask}}
        with torch.no_grad(), stack("sage_attn") as over:
            out = over(**given(0.5), **extra, return_dict=False)[0]
            right = denoiser()(**given(0.5), **extra, return_dict=False)[0]
            assert over.report().passes["sage_attn"] == {"sage_calls": 0 if hidden else 2, "other_calls": told}
        assert torch.equal(out, right) is bool(hidden)


def call(heads: int = 4, keys: int = 4, size: int = 64, dtype: torch.dtype = torch.float16, **more: Any) -> SdpaCall:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 128, size, generator=generator).to(dtype) for n in (heads, keys, keys))
    return SdpaCall(q, k, v, **more)


def asked(sdpa: SdpaCall, parallel: bool = False) -> AttentionCall:
    return AttentionCall("attn", SelfAttention(""), sdpa, 128, parallel)


@pytest.mark.parametrize(
    ("sdpa", "told"),
    [
        (call(), ""),
        (call(keys=2), ""),
        (call(size=96, dtype=torch.bfloat16), ""),
        (call(size=128), ""),
        (call(size=80), "expected heads of 64, 96, 128, got 80"),
        (call(dtype=torch.float32), "expected fp16 or bf16 alike, got float32, float32, float32"),
        (call(causal=True), "causal"),
        (call(dropout=0.1), "dropout"),
        (replace(call(), v=torch.zeros(2, 4, 128, 128).half()), "values of another size"),
        (replace(call(), v=call().v.bfloat16()), "queries, keys and values of several dtypes"),
        (replace(call(), v=call().v.requires_grad_()), "gradients are recorded"),
        (replace(call(), v=call().v.mT.contiguous().mT), "the last dimension must be contiguous"),
    ],
)
def test_calls_are_taken_or_refused_with_the_reason(sdpa: SdpaCall, told: str) -> None:
    backend = EightBit(Tally(clock_of(uniform(STEPS))))
    assert backend.unfit(asked(sdpa)) == told
    assert backend.unfit(asked(sdpa, parallel=True)) == "context parallelism"


@pytest.mark.parametrize("scale", [None, 0.5])
def test_grouped_heads_and_another_scale_are_followed(scale: float | None) -> None:
    sdpa = call(keys=2, scale=scale)
    got = EightBit(Tally(clock_of(uniform(STEPS)))).run(*sdpa.plain(), asked(sdpa)).transpose(1, 2)
    right = F.scaled_dot_product_attention(sdpa.q, sdpa.k, sdpa.v, scale=scale, enable_gqa=True)
    assert (got - right).norm() < 0.03 * right.norm()


@pytest.mark.parametrize(
    ("wanted", "facts", "told"),
    [
        (SageAttention(), HALF, "its kernel is for CUDA, the model is on cpu"),
        (SageAttention(), replace(HALF, machine=Machine("mps")), "its kernel is for CUDA, the model is on mps"),
        (FORCED, replace(HALF, dtype="float32"), "expected a model in float16 or bfloat16, got float32"),
        (FORCED, replace(HALF, head_dim=72), "expected heads of 64, 96, 128, got 72"),
        (
            FORCED,
            replace(HALF, image_tokens=1024, head_dim=128),
            "expected keys in whole tiles of 64, or more than 3,968, got 1,040",
        ),
        (FORCED, replace(HALF, lacks={"attention": "linear in all layers"}), "linear in all layers"),
    ],
)
def test_what_could_not_run_stays_dense_and_says_why(wanted: SageAttention, facts: Any, told: str) -> None:
    (finding,) = wanted.check(facts)
    assert finding.repair == "stays dense" and finding.replacement is None and not finding.fatal
    assert finding.what == f"no 8-bit attention: {told}"
    assert make_plan(facts, [wanted]).facts_after.attention_bits == 16


def test_without_its_package_a_gpu_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "importable", lambda module: module != "sageattention")
    (finding,) = SageAttention().check(CUDA)
    assert finding.what == "no 8-bit attention: the package is missing: pip install 'ditstack[sage]'"
    monkeypatch.setattr(subject, "importable", lambda module: True)
    plan = make_plan(CUDA, [SageAttention()])
    assert plan.findings == () and plan.facts_after.attention_bits == 8
    assert "time: not measured on a GPU" in explain(plan)


def test_unknown_tokens_are_a_note() -> None:
    (finding,) = FORCED.check(replace(HALF, image_tokens=0, text_tokens=0))
    assert finding.note and "unknown" in finding.what


def test_the_plan_puts_it_before_sparse_attention_and_behind_the_weights() -> None:
    built = Stack(denoiser(), steps=STEPS).cache("svd").sparse_attn().sage_attn().quantize("int8", min_features=64)
    assert [p.stage for p in built.passes] == ["quantize", "sage_attn", "sparse_attn", "cache"]
    assert "computed in plain torch, slower than dense attention" in explain(make_plan(HALF, [FORCED]))


def test_a_recipe_takes_it_and_gives_it_back() -> None:
    (made,) = parse_recipe({"sage_attn": {"even_if_slower": True}}, "mine").passes(None)
    assert made == FORCED and made.options() == {"even_if_slower": True} and SageAttention().options() == {}
