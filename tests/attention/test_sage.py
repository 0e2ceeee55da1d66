"""SageAttention: the reference is what the kernels compute, and its error stays within what its steps allow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from boundbench.documented import int8_matmul_bound
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.attention.kernels import dense
from stack.attention.sage import KEYS, QUERIES, int8_scores, reference, rounded, sage_attention, smoothed, unfit
from stack.core.errors import StackError

# queries, keys, head size, dtype: keys in whole tiles of 64, and not; queries in whole tiles of 128, and not.
CALLS = [
    (128, 128, 64, "bfloat16"),
    (130, 320, 64, "float16"),
    (192, 192, 96, "bfloat16"),
    (128, 256, 96, "float16"),
    (256, 64, 128, "bfloat16"),
    (100, 192, 128, "float16"),
    (128, 272, 64, "bfloat16"),
    (128, 77, 128, "float16"),
    (192, 100, 96, "bfloat16"),
]


@pytest.fixture(scope="module")
def kernels() -> dict[tuple[object, ...], dict[str, float]]:
    """How far the kernels are from the reference in all calls, found by a process of its own (`sage_kernels`)."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.attention.sage_kernels", json.dumps(CALLS)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(CALLS, json.loads(done.stdout), strict=True))


@pytest.mark.skipif(find_spec("triton") is None, reason="triton has no wheels for this system")
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_the_kernels_compute_what_the_reference_says(kernels: dict, call: tuple[int, int, int, str]) -> None:
    """In bf16 the interpreter cuts the last bits of outputs off where the reference rounds them."""
    off = kernels[call]
    assert off["reference"] < (0.005 if call[3] == "bfloat16" else 0.001)
    if call[1] % KEYS:
        assert off["reference without tail"] > 0.05 and off["exact"] > 0.05
    else:
        assert off["reference without tail"] == off["reference"] and 0.008 < off["exact"] < 0.02


def draw(
    seed: int, queries: int, keys: int, size: int, spread: float = 1.0, outlier: float = 1.0
) -> list[torch.Tensor]:
    """fp32 queries, keys and values of two heads. One key is an outlier, and one channel of all queries."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, n, 2, size, generator=generator) for n in (queries, keys, keys))
    k[:, keys // 2] *= outlier
    q[..., 0] *= outlier
    return [spread * q, k, v]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 9999),
    queries=st.integers(1, 150),
    keys=st.integers(1, 200),
    size=st.sampled_from([64, 96, 128]),
    spread=st.sampled_from([0.1, 1.0, 4.0]),
    outlier=st.sampled_from([0.0, 1.0, 30.0]),
)
def test_the_error_is_what_the_steps_allow(
    seed: int, queries: int, keys: int, size: int, spread: float, outlier: float
) -> None:
    """Against exact attention in fp64, with no part of the error left out.

    Scores are off by at most the bound d on a product of rounded rows. Then the odds m / (1 - m) of the softmax mass m
    on any set of keys change by a factor of at most e^(2 d), so m by at most tanh(d / 2), and the output by that times
    the diameter of the values. Rounding weights and values to fp16 adds 2^-11 of a value each, and 2^-25 for each key
    whose weight is too small for that.
    """
    q, k, v = draw(seed, queries, keys, size, spread, outlier)
    k = smoothed(k)
    scale = size**-0.5
    exact_q, exact_k, exact_v = (x.double().transpose(1, 2) for x in (q * scale, k, v))
    scores = exact_q @ exact_k.mT
    (_, step_q), (_, step_k) = rounded(q, QUERIES, scale), rounded(k, KEYS)
    allowed = int8_matmul_bound(
        step_q.double(),
        step_k.double().mT,
        exact_q.abs().sum(-1, keepdim=True),
        exact_k.abs().sum(-1)[:, :, None],
        size,
    )
    found = int8_scores(q, k).double() * torch.log(torch.tensor(2.0, dtype=torch.float64))
    dust = 1e-6 * (1 + scores.abs().amax())
    assert ((found - scores).abs() <= allowed + dust).all()

    shift = (allowed + dust).amax(-1)
    norms, radius = exact_v.norm(dim=-1), (exact_v - exact_v.mean(2, keepdim=True)).norm(dim=-1)
    bound = 2 * torch.tanh(shift / 2) * radius.amax(-1, keepdim=True)
    bound += norms.amax(-1, keepdim=True) * (2**-10 + keys * 2**-25 + 1e-5)
    error = (reference(q, k, v).double().transpose(1, 2) - scores.softmax(-1) @ exact_v).norm(dim=-1)
    assert (error <= bound).all()


def test_smoothing_is_worth_its_name() -> None:
    """Keys that share a large offset cost nothing once it is gone; with it the steps are as wide as the offset."""
    q, k, v = draw(0, 128, 192, 64)
    offset = k + 20 * torch.randn(1, 1, 2, 64, generator=torch.Generator().manual_seed(1))
    exact = dense(q.double(), k.double(), v.double())
    off = [float((reference(q, keys, v) - exact).norm() / exact.norm()) for keys in (smoothed(offset), offset)]
    assert off[0] < 0.02 < 0.08 < off[1]


def test_the_callers_keys_stay_as_they_are() -> None:
    q, k, v = (x.bfloat16() for x in draw(0, 70, 128, 64))
    k, before = k + 3, k + 3
    out = sage_attention(q, k, v)
    assert torch.equal(k, before) and torch.equal(out, reference(q, smoothed(k), v))
    assert out.shape == q.shape and out.dtype == q.dtype and out.is_contiguous()
    exact = dense(*(x.double() for x in (q, k, v)))
    assert (out.double() - exact).norm() < 0.02 * exact.norm()


def test_the_operator_is_well_formed_and_breaks_no_graph() -> None:
    q, k, v = (x.half() for x in draw(0, 70, 128, 64))
    torch.library.opcheck(torch.ops.ditstack.sage_attention.default, (q, k, v))
    compiled = torch.compile(sage_attention, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(q, k, v), sage_attention(q, k, v))


def half(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.float16)


def test_what_the_kernel_cannot_take_is_told_before_it_is_called() -> None:
    fits = half(2, 70, 3, 64)
    assert unfit(fits, half(2, 128, 3, 64), half(2, 128, 3, 64)) == ""
    for keys, why in {
        half(2, 77, 3, 64): "expected keys in whole tiles of 64, got 77",
        half(2, 0, 3, 64): "expected keys in whole tiles of 64, got 0",
        half(
            2, 64, 1, 64
        ): "expected one batch, heads and head size, got (2, 70, 3, 64), (2, 64, 1, 64), (2, 64, 1, 64)",
        half(2, 64, 3, 64).bfloat16(): "expected fp16 or bf16 alike, got float16, bfloat16, bfloat16",
        half(2, 64, 64, 3).mT: "the last dimension must be contiguous",
    }.items():
        assert unfit(fits, keys, keys) == why
    narrow, single = half(1, 64, 2, 72), torch.zeros(1, 64, 2, 64)
    assert unfit(narrow, narrow, narrow) == "expected heads of 64, 96, 128, got 72"
    assert unfit(single, single, single) == "expected fp16 or bf16 alike, got float32, float32, float32"
    with pytest.raises(StackError, match="SageAttention cannot take these inputs: expected keys in whole tiles"):
        sage_attention(fits, half(2, 77, 3, 64), half(2, 77, 3, 64))
