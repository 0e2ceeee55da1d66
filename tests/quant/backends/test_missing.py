"""A library that is not installed is named with its install line, before anything is changed."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import pytest
import torch

from stack.errors import StackError
from stack.quant.backends import BACKENDS
from stack.quant.schemes import SCHEMES

PACKAGES = {"torchao": "torchao", "bitsandbytes": "bitsandbytes", "quanto": "optimum"}


@pytest.mark.parametrize("backend", PACKAGES)
def test_a_missing_library_names_the_install_line(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = PACKAGES[backend]
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {package!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(StackError, match=rf"quantize\(backend='{backend}'\) needs .*pip install '(optimum-)?{backend}"):
        BACKENDS[backend].prepare(SCHEMES["int8"], torch.device("cpu"))
