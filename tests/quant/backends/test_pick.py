"""The choice of a backend: pure, from measured figures, with its reason."""

from __future__ import annotations

import pytest

from stack.core.errors import StackError
from stack.core.facts import Machine
from stack.quant.backends import BACKENDS, libraries, pick
from stack.quant.backends.pick import MEASURED
from stack.quant.schemes import SCHEMES

CPU, H200 = Machine("cpu", "AVX512", vnni=True), Machine("cuda", "NVIDIA H200", capability=(9, 0))
A100 = Machine("cuda", "NVIDIA A100", capability=(8, 0))


@pytest.fixture(autouse=True)
def _everything_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "importable", lambda module: True)


@pytest.mark.parametrize(
    ("scheme", "machine", "backend"),
    [
        ("int8", CPU, "native"),
        ("int8-weight", CPU, "native"),
        ("int4-weight", CPU, "native"),
        ("nf4", CPU, "native"),
        ("fp8-weight", CPU, "native"),
        ("int8", H200, "torchao"),
        ("fp8", H200, "torchao"),
        ("int8-weight", H200, "torchao"),
        ("nf4", H200, "bitsandbytes"),
        ("int4-weight", H200, "torchao"),
        ("nf4", Machine("mps"), "native"),
    ],
)
def test_auto(scheme: str, machine: Machine, backend: str) -> None:
    assert pick(SCHEMES[scheme], "auto", machine)[0].name == backend


def test_the_reason_names_the_figures_and_the_others() -> None:
    why = pick(SCHEMES["int8"], "auto", CPU)[1]
    for backend in ("torchao", "bitsandbytes"):
        (known,) = [m for m in MEASURED if (m.scheme, m.device, m.backend) == ("int8", "cpu", backend)]
        assert f"{backend} {known.speed:g}x" in why
    assert "over bf16" in why and "VNNI" in why
    assert "not measured" not in why
    assert pick(SCHEMES["nf4"], "auto", H200)[1] == "the choice for cuda, not measured there"
    assert pick(SCHEMES["nf4"], "native", CPU) == (BACKENDS["native"], "asked for")


@pytest.mark.parametrize("scheme", ["int8", "int8-weight", "fp8-weight"])
def test_on_cuda_the_reason_says_whose_figures_they_are_and_what_nobody_measured(scheme: str) -> None:
    assert {m.backend for m in MEASURED if m.device == "cuda"} == {"torchao"}
    assert all("published by" in m.where for m in MEASURED if m.device == "cuda")
    why = pick(SCHEMES[scheme], "auto", H200)[1]
    assert "published by sayakpaul/diffusers-torchao" in why and "not measured on cuda: native" in why


def test_refusals() -> None:
    for machine in (CPU, A100):
        with pytest.raises(StackError, match=r"only on CUDA from capability 8\.9 on.*use 'int8'"):
            pick(SCHEMES["fp8"], "torchao", machine)
        with pytest.raises(StackError, match=r"native backend has no product of 8-bit floats.*capability 8\.9"):
            pick(SCHEMES["fp8"], "auto", machine)
    with pytest.raises(StackError, match="quanto rounds activations with fixed scales"):
        pick(SCHEMES["int8"], "quanto", CPU)
    with pytest.raises(StackError, match="unknown quantization backend 'cutlass'"):
        pick(SCHEMES["int8"], "cutlass", CPU)
    with pytest.raises(StackError, match="no int8 product is known for mps"):
        pick(SCHEMES["int8"], "auto", Machine("mps"))
