"""SageAttention: the reference is what the kernels compute, and its error stays within what its steps allow."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from math import isfinite
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from boundbench.documented import int8_matmul_bound
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.attention.kernels import dense
from stack.attention.sage import (
    KEYS,
    MOST_FILLED,
    QUERIES,
    WIDER,
    filled,
    int8_scores,
    reference,
    rounded,
    sage_attention,
    scaled,
    smoothed,
    unfit,
    unfit_size,
)
from stack.bounds import filler_share_bound
from stack.core.errors import StackError

from ..reads import CountReads

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
    assert not isfinite(off["large"]) and off["guarded"] < 0.005
    if call[2] in WIDER and call[1] >= KEYS:
        assert off["tail put right"] < 0.02


def draw(
    seed: int, queries: int, keys: int, size: int, spread: float = 1.0, outlier: float = 1.0, offset: float = 0.0
) -> list[torch.Tensor]:
    """fp32 queries, keys and values of two heads. One key is an outlier, and one channel of all queries.

    All keys share an offset.
    """
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, n, 2, size, generator=generator) for n in (queries, keys, keys))
    k[:, keys // 2] *= outlier
    k += offset * torch.randn(1, 1, 2, size, generator=generator)
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
    offset=st.sampled_from([0.0, 20.0]),
    magnitude=st.sampled_from([1e-12, 1.0, 1e12]),
)
def test_the_error_is_what_the_steps_allow(
    seed: int, queries: int, keys: int, size: int, spread: float, outlier: float, offset: float, magnitude: float
) -> None:
    """Against exact attention in fp64, with no part of the error left out, whatever the size of the values.

    Scores are off by at most the bound d on a product of rounded rows. Then the odds m / (1 - m) of the softmax mass m
    on any set of keys change by a factor of at most e^(2 d), so m by at most tanh(d / 2), and the output by that times
    the diameter of the values. Rounding weights and values to fp16 adds 2^-11 of a value each, and 2^-25 for each key
    whose weight is too small for that. Fillers of mass p add p times a distance within the values.
    """
    q, k, v = draw(seed, queries, keys, size, spread, outlier, offset)
    k, v = smoothed(k), magnitude * v
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
    fillers = filler_share_bound(-keys % KEYS, keys, found.mean(-1))
    bound = 2 * (torch.tanh(shift / 2) + fillers) * radius.amax(-1, keepdim=True)
    bound += norms.amax(-1, keepdim=True) * (2**-10 + keys * 2**-25 + 1e-5)
    values, unit = scaled(v)
    out = reference(q, *filled(k, values)).double() * unit
    error = (out.transpose(1, 2) - scores.softmax(-1) @ exact_v).norm(dim=-1)
    assert (error <= bound).all()


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 9999),
    keys=st.integers(1, 400),
    spread=st.sampled_from([0.0, 1.0, 10.0]),
    outlier=st.sampled_from([0.0, 1.0, 30.0]),
    offset=st.sampled_from([0.0, 20.0]),
)
def test_fillers_weigh_no_more_than_the_average_key(
    seed: int, keys: int, spread: float, outlier: float, offset: float
) -> None:
    """In fp64, where nothing else is off: their mass, and that the output moves by it towards the mean value."""
    q, k, v = (x.double() for x in draw(seed, 5, keys, 64, spread, outlier, offset))
    more_k, more_v = filled(smoothed(k), v)
    assert more_k.shape[1] % KEYS == 0 and torch.equal(more_v[:, :keys], v)
    weights = (q.transpose(1, 2) @ more_k.permute(0, 2, 3, 1) / 8).softmax(-1)
    mass = weights[..., keys:].sum(-1)
    assert (mass <= filler_share_bound(-keys % KEYS, keys) + 1e-9).all()
    right, got = dense(q, k, v).transpose(1, 2), dense(q, more_k, more_v).transpose(1, 2)
    moved = mass[..., None] * (v.mean(1)[:, :, None] - right)
    torch.testing.assert_close(got - right, moved, atol=1e-9, rtol=1e-6)


def test_the_bound_on_fillers_is_reached_and_decides_which_lengths_are_taken() -> None:
    assert filler_share_bound(16, 48) == 0.25 and filler_share_bound(16, 48, math.log(2)) == pytest.approx(1 / 7)
    taken = {keys for keys in range(1, 5000) if not unfit_size(keys, 128)}
    assert taken == {keys for keys in range(1, 5000) if -keys % KEYS / (keys + -keys % KEYS) <= MOST_FILLED}
    assert {64, 1024, 1023, 3967, 3969, 4112, 4999} <= taken and not {1, 1040, 272, 3905} & taken
    for size in WIDER:
        assert [keys for keys in range(1, 5000) if unfit_size(keys, size)] == list(range(1, 63))


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 999),
    keys=st.integers(63, 400),
    size=st.sampled_from(list(WIDER)),
    outlier=st.sampled_from([1.0, 30.0]),
    offset=st.sampled_from([0.0, 20.0]),
)
def test_a_tail_of_keys_is_put_right_by_the_mass_of_its_fillers(
    seed: int, keys: int, size: int, outlier: float, offset: float
) -> None:
    """As far off exact attention as whole tiles of keys are, whatever number of keys is missing."""
    q, k, v = (x.bfloat16() for x in draw(seed, 40, keys, size, outlier=outlier, offset=offset))
    right = dense(*(x.double() for x in (q, k, v)))
    spread = (v.double() - v.double().mean(1, keepdim=True)).norm(dim=-1).amax()
    off = (sage_attention(q, k, v).double() - right).norm(dim=-1)
    whole = keys // KEYS * KEYS
    if whole == 0:
        return
    scores = dense(*(x.double() for x in (q, k[:, :whole], v[:, :whole])))
    usual = (sage_attention(q, k[:, :whole], v[:, :whole]).double() - scores).norm(dim=-1).amax()
    assert off.amax() <= 2 * usual + 0.02 * spread


def test_without_the_fillers_mass_the_output_is_too_small_by_it() -> None:
    q, k, v = (x.bfloat16() for x in draw(0, 40, 80, 64))
    right = dense(*(x.double() for x in (q, k, v)))
    made = sage_attention(q, k, v).double()
    plain = reference(q, *(F.pad(x, (0, 0, 0, 0, 0, 48)) for x in (smoothed(k), v))).double()
    assert (made - right).norm() < 0.03 * right.norm() < 0.15 * right.norm() < (plain - right).norm()


@settings(deadline=None, max_examples=25)
@given(exponents=st.lists(st.integers(-110, 110), min_size=64, max_size=64), seed=st.integers(0, 99))
def test_values_of_any_size_are_as_exact_as_any_other(exponents: list[int], seed: int) -> None:
    """Channels times powers of two give the output times these powers, bit for bit."""
    q, k, v = (x.bfloat16() for x in draw(seed, 40, KEYS, 64))
    powers = torch.tensor([2.0**exponent for exponent in exponents]).bfloat16()
    assert torch.equal(sage_attention(q, k, v * powers), sage_attention(q, k, v) * powers)


def test_values_are_scaled_by_powers_of_two() -> None:
    v = torch.tensor([0.0, 1e-4, 300.0, 512.0, 60000.0, torch.inf, torch.nan]).half().view(1, 1, 1, 7)
    values, unit = scaled(v)
    assert unit.flatten().tolist() == [1.0, 2.0**-14, 1.0, 2.0, 128.0, 1.0, 1.0]
    assert values.abs().nan_to_num(posinf=0).max() < 512 and torch.equal((values * unit)[..., :6], v[..., :6])


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
    values, unit = scaled(v)
    assert torch.equal(k, before) and torch.equal(out, reference(q, smoothed(k), values) * unit)
    assert out.shape == q.shape and out.dtype == q.dtype and out.is_contiguous()
    exact = dense(*(x.double() for x in (q, k, v)))
    assert (out.double() - exact).norm() < 0.02 * exact.norm()


def test_the_operator_is_well_formed_and_breaks_no_graph() -> None:
    q, k, v = (x.half() for x in draw(0, 70, 128, 64))
    torch.library.opcheck(torch.ops.ditstack.sage_attention.default, (q, k, v))
    compiled = torch.compile(sage_attention, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(q, k, v), sage_attention(q, k, v))


def test_nothing_is_read_from_the_device() -> None:
    q, k, v = (x.bfloat16() for x in draw(0, 70, 3990, 64))  # with a tail
    with CountReads() as reads:
        sage_attention(q, k, v)
    assert reads.count == 0


def half(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.float16)


def test_what_the_kernel_cannot_take_is_told_before_it_is_called() -> None:
    fits = half(2, 70, 3, 64)
    assert unfit(fits, half(2, 128, 3, 64), half(2, 128, 3, 64)) == ""
    for keys, why in {
        half(2, 50, 3, 64): "expected at least 64 keys, got 50",
        half(2, 0, 3, 64): "expected at least 64 keys, got 0",
        half(
            2, 64, 1, 64
        ): "expected one batch, heads and head size, got (2, 70, 3, 64), (2, 64, 1, 64), (2, 64, 1, 64)",
        half(2, 64, 3, 64).bfloat16(): "expected fp16 or bf16 alike, got float16, bfloat16, bfloat16",
        half(2, 64, 64, 3).mT: "the last dimension must be contiguous",
    }.items():
        assert unfit(fits, keys, keys) == why
    wide = half(2, 77, 3, 128)
    assert unfit(wide, wide, wide) == "expected keys in whole tiles of 64, or more than 3,968, got 77"
    narrow, single = half(1, 64, 2, 72), torch.zeros(1, 64, 2, 64)
    assert unfit(narrow, narrow, narrow) == "expected heads of 64, 96, 128, got 72"
    assert unfit(single, single, single) == "expected fp16 or bf16 alike, got float32, float32, float32"
    with pytest.raises(StackError, match="SageAttention cannot take these inputs: expected keys in whole tiles"):
        sage_attention(wide, wide, wide)
