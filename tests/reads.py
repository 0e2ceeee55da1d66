"""Counts numbers that are read back from tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class CountReads(TorchDispatchMode):
    """Counts `float(x)`, `int(x)`, `bool(x)`, `x.item()` and `x.tolist()`, each call once.

    On an accelerator every one of them waits until all that was launched before has run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._tolist: Callable[..., Any] = torch.Tensor.tolist

    def __enter__(self) -> CountReads:
        original = self._tolist

        def tolist(tensor: torch.Tensor) -> Any:
            self.count += 1
            return original(tensor)

        # Below the dispatcher's reach: only a replaced method sees it.
        torch.Tensor.tolist = tolist  # type: ignore[method-assign]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        torch.Tensor.tolist = self._tolist  # type: ignore[method-assign]
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))
