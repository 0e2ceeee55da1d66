"""Pieces are for CPUs: an accelerator gets one expression, with the same numbers."""

from __future__ import annotations

import pytest
import torch

from stack.quant.formats import load, reader, store
from stack.quant.kernels.pieces import by_rows
from stack.quant.kernels.rows import quantize_rows, round_to_int8
from stack.quant.schemes import SCHEMES

HERE, ELSEWHERE = torch.device("cpu"), torch.device("cuda")


def test_only_a_cpu_works_in_pieces() -> None:
    lengths: list[int] = []

    def seen(x: torch.Tensor) -> torch.Tensor:
        lengths.append(len(x))
        return x * 2

    x = torch.randn(300, 2048)
    for device, expected in ((HERE, [64, 64, 64, 64, 44]), (ELSEWHERE, [300]), (torch.device("mps"), [300])):
        lengths.clear()
        assert torch.equal(by_rows(seen, [x], 2048, torch.bfloat16, device), (x * 2).to(torch.bfloat16))
        assert lengths == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_are_rounded_alike_whole_and_in_pieces(dtype: torch.dtype) -> None:
    x = (torch.randn(300, 2048) * torch.arange(1, 301)[:, None]).to(dtype)
    before, step = x.clone(), quantize_rows(x).step
    whole, pieces = (by_rows(round_to_int8, (x, 1 / step), 2048, torch.int8, d) for d in (ELSEWHERE, HERE))
    assert torch.equal(whole, pieces) and torch.equal(x, before)
    assert torch.equal(whole.to(torch.int16) + 128, quantize_rows(x).values.to(torch.int16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["int8-weight", "int4-weight", "nf4", "fp8-weight"])
def test_weights_are_read_alike_whole_and_in_pieces(name: str, dtype: torch.dtype) -> None:
    stored = store(torch.randn(300, 2030, dtype=torch.bfloat16), SCHEMES[name])
    whole = by_rows(reader(stored, dtype), stored.tensors(), 2030, dtype, ELSEWHERE)
    assert whole.shape == (300, 2030) and torch.equal(whole, load(stored, dtype))
