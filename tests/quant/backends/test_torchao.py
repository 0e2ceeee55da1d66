"""The torchao backend, on the CPU."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import pytest
import torch
from torch import nn

from stack.errors import StackError
from stack.quant.backends.torchao import TorchAO
from stack.quant.schemes import SCHEMES

LIBRARY = TorchAO()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_converts_a_copy_within_three_per_cent(dtype: torch.dtype) -> None:
    linear = nn.Linear(192, 256).to(dtype)
    before = linear.weight.detach().clone()
    converted = LIBRARY.convert([linear], SCHEMES["int8"])[0]
    x = torch.randn(2, 30, 192).to(dtype)
    with torch.no_grad():
        got, wanted = converted(x).float(), linear(x).float()
    assert type(linear.weight) is nn.Parameter and torch.equal(linear.weight, before)
    assert type(converted.linear.weight).__name__ == "Int8Tensor"
    assert 1e-4 < float((got - wanted).norm() / wanted.norm()) < 0.03
    assert LIBRARY.held_bytes(converted) < linear.weight.nbytes * 0.6


def test_few_rows_and_none() -> None:
    linear = nn.Linear(64, 32)
    converted = LIBRARY.convert([linear], SCHEMES["int8"])[0]
    assert converted(torch.zeros(2, 0, 64)).shape == (2, 0, 32)
    for rows in (1, 16, 17):
        x = torch.randn(rows, 64)
        with torch.no_grad():
            got, wanted = converted(x), linear(x)
        assert float((got - wanted).norm() / wanted.norm()) < 0.03


def test_a_missing_torchao_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "torchao" or name.startswith("torchao.")]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("torchao"):
            raise ImportError("No module named 'torchao'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(StackError, match="pip install 'torchao"):
        LIBRARY.prepare(SCHEMES["int8"], torch.device("cpu"))
